"""Whether a run could learn from what was drawn, in words: pure functions of counts."""

import math
from dataclasses import dataclass
from typing import Literal

from fastgrpo.algorithm.no_signal import Cause, Circumstances, causes_of
from fastgrpo.algorithm.signal_counts import SignalCounts

HARDLY = 0.1
"""Share of groups with signal below which nearly all of a run's time is spent on nothing."""
Z = 1.96
OF_A_RUN_THAT_LEARNS = {"is_cut", "ends_at_once", "reward_fails", "no_reward", "other_verifier", "other_temperature"}
"""Causes that are worth a word where there is signal too."""


@dataclass(frozen=True)
class Finding:
    """The verdict on a base model as a run would begin with it."""

    can_learn: Literal["yes", "hardly", "no"]
    headline: str
    causes: list[Cause]


def finding_of(counts: SignalCounts, about: Circumstances, compares_groups: bool, prompts_per_step: int) -> Finding:
    """What the counts at the run's own temperature say. Without ``compares_groups`` responses are compared over the
    whole batch, where a difference between groups teaches too."""
    causes, share = causes_of(counts, about), counts.with_signal / max(counts.groups, 1)
    if not compares_groups and counts.rewards_differ:
        words = "It can learn: rewards differ, and this run's advantages are made over the whole batch"
        return Finding("yes", words, _worth_a_word(causes))
    low, high = interval(counts.with_signal, counts.groups)
    seen = (
        f"{counts.with_signal} of {counts.groups} groups have signal at temperature {about.temperature:g}"
        f" (95 % interval: {100 * low:.0f} to {100 * high:.0f} %)"
    )
    if not counts.with_signal:
        return Finding("no", f"It cannot learn as it is: {seen}", causes)
    if share < HARDLY:
        return Finding("hardly", f"It can hardly learn: {seen}", causes)
    expected = f"expect about {share * prompts_per_step:.0f} of a step's {prompts_per_step} groups to teach"
    return Finding("yes", f"It can learn: {seen}; {expected}", _worth_a_word(causes))


def _worth_a_word(causes: list[Cause]) -> list[Cause]:
    return [cause for cause in causes if cause.name in OF_A_RUN_THAT_LEARNS]


def interval(hits: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (Wilson 1927); 0 to 1 without any trial."""
    if not count:
        return 0.0, 1.0
    share, z2 = hits / count, Z * Z
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)
