"""What a recipe does to rewards after the verifier: small functions, in the order in which it names them.

Each is (rewards [N], `Outcomes`) -> [N]. Those here are frozen dataclasses, so that a run can say what it was made
with; ``scaled`` gives the same technique for responses and runs of another length, as --shrink needs it.
"""

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from fastgrpo.algorithm.outcomes import Outcomes, RewardFunction


@dataclass(frozen=True)
class OverlongPenalty:
    """DAPO's soft penalty for long responses: nothing up to ``buffer_tokens`` before the limit, then linear down to
    ``-factor`` at the limit. Source: arXiv 2503.14476, eq. 13; verl workers/reward_manager/dapo.py."""

    buffer_tokens: int = 4096
    factor: float = 1.0

    def __post_init__(self) -> None:
        if self.buffer_tokens < 1:
            raise ValueError(f"an overlong penalty needs a buffer of 1 or more tokens, got {self.buffer_tokens}")

    def __call__(self, rewards: np.ndarray, outcomes: Outcomes) -> np.ndarray:
        beyond = outcomes.lengths - (outcomes.max_response_tokens - self.buffer_tokens)
        return rewards - self.factor * np.maximum(beyond / self.buffer_tokens, 0.0)

    def scaled(self, tokens: float, steps: float) -> Self:
        return replace(self, buffer_tokens=max(1, round(self.buffer_tokens * tokens)))


@dataclass(frozen=True)
class CosineLengthPenalty:
    """ProRL-V2's penalty for length, added to the reward: ``low + (high - low) / 2 * (1 + cos(pi * length / limit))``.

    The blog names the shape and not the constants: they are ours, a response at the limit loses a half.
    """

    high: float = 0.0
    low: float = -0.5

    def __call__(self, rewards: np.ndarray, outcomes: Outcomes) -> np.ndarray:
        angle = np.pi * outcomes.lengths / outcomes.max_response_tokens
        return rewards + self.low + (self.high - self.low) / 2 * (1 + np.cos(angle))


@dataclass(frozen=True)
class Cycled:
    """Another shaping for ``on_steps``, then none for ``off_steps``, again and again, from the first step on."""

    shaping: RewardFunction
    on_steps: int
    off_steps: int

    def __post_init__(self) -> None:
        if self.on_steps < 1 or self.off_steps < 0:
            raise ValueError(f"a cycle is 1 or more steps on and 0 or more off, got {self.on_steps}, {self.off_steps}")

    def __call__(self, rewards: np.ndarray, outcomes: Outcomes) -> np.ndarray:
        is_on = outcomes.step % (self.on_steps + self.off_steps) < self.on_steps
        return self.shaping(rewards, outcomes) if is_on else rewards

    def scaled(self, tokens: float, steps: float) -> Self:
        on, off = (max(1, round(count * steps)) for count in (self.on_steps, self.off_steps))
        return replace(self, shaping=scaled(self.shaping, tokens, steps), on_steps=on, off_steps=off)


@dataclass(frozen=True)
class StopProperly:
    """A truncated response gets ``factor`` of its reward (NVIDIA-NeMo/RL docs/guides/prorlv2.md: 0) where that is less:
    with -1 for a wrong one it must not pay to be cut off."""

    factor: float = 0.0

    def __call__(self, rewards: np.ndarray, outcomes: Outcomes) -> np.ndarray:
        return np.where(outcomes.truncated, np.minimum(rewards, self.factor * rewards), rewards)


def scaled(technique: Any, tokens: float, steps: float) -> Any:
    """The technique for responses ``tokens`` times as long in a run of ``steps`` times as many steps."""
    return technique.scaled(tokens, steps) if hasattr(technique, "scaled") else technique
