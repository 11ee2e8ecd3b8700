"""What became of the responses of some groups, as counts: all that is needed to say why there is nothing to learn."""

from collections.abc import Sequence
from dataclasses import dataclass

from fastgrpo.types import Group, Sample


@dataclass(frozen=True, kw_only=True)
class SignalCounts:
    """Counts of responses, but for the first two, which are of groups."""

    groups: int
    with_signal: int  # whose rewards differ
    responses: int
    right: int
    boxed: int
    cut: int  # at the longest response
    ended_at_once: int  # with their first token
    failures: int  # on which the reward hung, died or raised an error
    without_reward: int  # None, NaN or infinite
    tokens: int
    rewards_differ: bool  # of any two responses, also of different groups

    @classmethod
    def of(cls, groups: Sequence[Group]) -> "SignalCounts":
        """The counts of groups whose samples have their rewards."""
        samples = [sample for group in groups for sample in group]
        return cls(
            groups=len(groups),
            with_signal=sum(_differ(group) for group in groups),
            responses=len(samples),
            right=sum(s.correct for s in samples),
            boxed=sum(s.boxed for s in samples),
            cut=sum(s.response.finish_reason == "length" for s in samples),
            ended_at_once=sum(s.response.finish_reason == "stop" and len(s.response) <= 1 for s in samples),
            failures=sum(bool(s.failure) for s in samples),
            without_reward=sum(not s.teaches for s in samples),
            tokens=sum(len(s.response) for s in samples),
            rewards_differ=_differ(samples),
        )


def groups_of(samples: Sequence[Sample], group_size: int) -> list[Group]:
    """The groups of samples that stand together group by group."""
    return [list(samples[start : start + group_size]) for start in range(0, len(samples), group_size)]


def _differ(samples: Sequence[Sample]) -> bool:
    """Whether two of those that have a reward have different ones."""
    rewards = [s.reward for s in samples if s.teaches]
    return len(rewards) > 0 and min(rewards) < max(rewards)
