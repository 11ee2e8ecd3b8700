"""Groups that have nothing to teach: all responses right, or all wrong."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from fastgrpo.types import Group

Rule = Literal["keep", "drop", "replace"]


@dataclass(frozen=True)
class Judged:
    """A group and what the verifier said of its responses."""

    group: Group
    correct: np.ndarray  # [group_size] bool
    num_failures: int  # of the verifier: responses that count as wrong unjudged
    texts: tuple[str, ...] = ()  # on the rank that judged alone: text is only looked at, never fed back

    @property
    def has_signal(self) -> bool:
        """On raw accuracy, whatever a recipe adds to the reward (DAPO, arXiv 2503.14476, eq. 11)."""
        return 0 < int(self.correct.sum()) < len(self.correct)


@dataclass
class Selection:
    """The groups that a step trains on, of those that were judged for it."""

    rule: Rule
    wanted: int
    max_rounds: int
    kept: list[Judged] = field(default_factory=list)
    dropped: list[Judged] = field(default_factory=list)
    num_rounds: int = 0

    def add(self, judged: Sequence[Judged]) -> None:
        self.num_rounds += 1
        for one in judged:
            (self.kept if self.rule == "keep" or one.has_signal else self.dropped).append(one)

    @property
    def num_missing(self) -> int:
        """Groups to ask for: none once every group has signal, or the rounds are used up."""
        if self.num_rounds == 0:
            return self.wanted
        if self.rule != "replace" or self.num_rounds >= self.max_rounds:
            return 0
        return self.wanted - len(self.kept)

    def metrics(self) -> dict[str, float]:
        dropped_right = sum(bool(one.correct.all()) for one in self.dropped)
        return {
            "groups_kept": len(self.kept),
            "groups_dropped_all_right": dropped_right,
            "groups_dropped_all_wrong": len(self.dropped) - dropped_right,
            "sampling_rounds": self.num_rounds,
        }
