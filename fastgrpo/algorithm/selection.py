"""Groups that have nothing to teach: all responses right, or all wrong, or whatever a recipe's rule says."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from fastgrpo.types import Group

Rule = Literal["keep", "drop", "replace"]


def some_right_and_some_wrong(correct: np.ndarray) -> bool:  # [group_size] bool
    """DAPO's rule (arXiv 2503.14476, eq. 11)."""
    return 0 < int(correct.sum()) < len(correct)


@dataclass(frozen=True)
class SuccessBetween:
    """Groups with a share of right responses within both bounds (QuestA: 0.05 and 0.95)."""

    low: float
    high: float

    def __call__(self, correct: np.ndarray) -> bool:  # [group_size] bool
        return bool(self.low <= correct.mean() <= self.high)


@dataclass(frozen=True)
class Judged:
    """A group and what the verifier said of its responses."""

    group: Group
    correct: np.ndarray  # [group_size] bool
    num_failures: int  # of the verifier: responses that count as wrong unjudged
    texts: tuple[str, ...] = ()  # on the rank that judged alone: text is only looked at, never fed back
    unformatted: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))  # [group_size] bool, of the wrong


@dataclass
class Selection:
    """The groups that a step trains on, of those that were judged for it.

    ``has_signal`` sees raw verdicts, whatever a recipe adds to the reward.
    """

    rule: Rule
    wanted: int
    max_rounds: int
    has_signal: Callable[[np.ndarray], bool] = some_right_and_some_wrong
    kept: list[Judged] = field(default_factory=list)
    dropped: list[Judged] = field(default_factory=list)
    num_rounds: int = 0

    def add(self, judged: Sequence[Judged]) -> None:
        self.num_rounds += 1
        for one in judged:
            (self.kept if self.rule == "keep" or self.has_signal(one.correct) else self.dropped).append(one)

    @property
    def num_missing(self) -> int:
        """Groups to ask for: none once every group has signal, or the rounds are used up."""
        if self.num_rounds == 0:
            return self.wanted
        if self.rule != "replace" or self.num_rounds >= self.max_rounds:
            return 0
        return self.wanted - len(self.kept)

    def metrics(self) -> dict[str, float]:
        dropped_right = sum(bool(one.correct.mean() > 0.5) for one in self.dropped)
        return {
            "groups_kept": len(self.kept),
            "groups_dropped_all_right": dropped_right,
            "groups_dropped_all_wrong": len(self.dropped) - dropped_right,
            "sampling_rounds": self.num_rounds,
        }
