"""What a recipe may put in the place of plain GRPO's parts: advantages, shaping, choice of groups, phases."""

from fastgrpo.algorithm.advantages import batch_normalised, batch_whitened, group_normalised
from fastgrpo.algorithm.algorithm import Algorithm, Phase, ProblemText, ReferenceReset
from fastgrpo.algorithm.outcomes import Outcomes, RewardFunction
from fastgrpo.algorithm.selection import SuccessBetween, scores_differ
from fastgrpo.algorithm.shaping import CosineLengthPenalty, Cycled, OverlongPenalty, StopProperly

__all__ = [
    "Algorithm",
    "CosineLengthPenalty",
    "Cycled",
    "Outcomes",
    "OverlongPenalty",
    "Phase",
    "ProblemText",
    "ReferenceReset",
    "RewardFunction",
    "StopProperly",
    "SuccessBetween",
    "batch_normalised",
    "batch_whitened",
    "group_normalised",
    "scores_differ",
]
