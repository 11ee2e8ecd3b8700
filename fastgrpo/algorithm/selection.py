"""Groups that have nothing to teach: all responses right, or all wrong, or whatever a recipe's rule says."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from fastgrpo.types import Group

Rule = Literal["keep", "drop", "replace"]


def scores_differ(scores: np.ndarray) -> bool:  # [num_teaching] float64
    """Whether the responses of a group have different scores: where they are right or wrong, whether there are both,
    which is DAPO's rule (arXiv 2503.14476, eq. 11)."""
    return len(scores) > 0 and bool(scores.min() < scores.max())


@dataclass(frozen=True)
class SuccessBetween:
    """Whether a group's mean score, its share of right responses, is within both bounds (QuestA: 0.05 and 0.95)."""

    low: float
    high: float

    def __call__(self, scores: np.ndarray) -> bool:  # [num_teaching] float64
        return len(scores) > 0 and bool(self.low <= scores.mean() <= self.high)


@dataclass
class Selection:
    """The groups that a step trains on, of those that were judged for it.

    ``has_signal`` sees raw scores, whatever a recipe adds to the reward, of the responses that have a reward at all.
    """

    rule: Rule
    wanted: int
    max_rounds: int
    has_signal: Callable[[np.ndarray], bool] = scores_differ
    kept: list[Group] = field(default_factory=list)
    dropped: list[Group] = field(default_factory=list)
    num_rounds: int = 0

    def add(self, groups: Sequence[Group]) -> None:
        self.num_rounds += 1
        for group in groups:
            (self.kept if self.rule == "keep" or self.has_signal(_scores(group)) else self.dropped).append(group)

    @property
    def num_missing(self) -> int:
        """Groups to ask for: none once every group has signal, or the rounds are used up."""
        if self.num_rounds == 0:
            return self.wanted
        if self.rule != "replace" or self.num_rounds >= self.max_rounds:
            return 0
        return self.wanted - len(self.kept)

    def metrics(self) -> dict[str, float]:
        dropped_right = sum(bool(_correct(group).mean() > 0.5) for group in self.dropped)
        return {
            "groups_kept": len(self.kept),
            "groups_dropped_all_right": dropped_right,
            "groups_dropped_all_wrong": len(self.dropped) - dropped_right,
            "sampling_rounds": self.num_rounds,
        }


def _scores(group: Group) -> np.ndarray:  # [num_teaching] float64
    return np.array([sample.score for sample in group if sample.teaches], dtype=np.float64)


def _correct(group: Group) -> np.ndarray:  # [group_size] bool
    return np.array([sample.correct for sample in group])
