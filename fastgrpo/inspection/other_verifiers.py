"""The same responses by verifiers that are shipped: what of a run's trouble is its own verifier's."""

from collections.abc import Sequence
from dataclasses import replace

from fastgrpo.algorithm.signal_counts import SignalCounts
from fastgrpo.config import RewardConfig
from fastgrpo.inspection.asked import place_of
from fastgrpo.rewards import Verdict, VerifierPool
from fastgrpo.types import Group, Sample

TRIED = ("mathd_or_sympy", "simplerl_mix", "math_verify", "dapo_minerva")
"""From a box alone, over the last number and the last expression, to a line that begins with "Answer:"."""


def by_others(groups: Sequence[Group], settings: RewardConfig, own: str) -> dict[str, SignalCounts]:
    """The counts of the groups as each of these verifiers judges them, but for the run's own; none where a problem has
    no answer, which they could not judge by."""
    if any(not group[0].prompt.answer for group in groups):
        return {}
    return {name: _by(name, groups, settings) for name in TRIED if name != own}


def _by(name: str, groups: Sequence[Group], settings: RewardConfig) -> SignalCounts:
    pairs = [(sample.text or "", sample.prompt.answer) for group in groups for sample in group]
    with VerifierPool(place_of(name), settings.workers, settings.timeout_s, settings.memory_limit_gib) as pool:
        verdicts = iter(pool.score(pairs))
    return SignalCounts.of([[_judged(sample, next(verdicts)) for sample in group] for group in groups])


def _judged(sample: Sample, verdict: Verdict) -> Sample:
    right = bool(verdict.correct)
    return replace(sample, correct=right, reward=float(right), teaches=True, failure=verdict.failure)
