"""What the functions of a recipe see of a step: one array a fact, one element a sample."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fastgrpo.config import Config
from fastgrpo.types import Sample


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """What is known of the N samples of a step when their rewards and advantages are made.

    Samples of a group stand together: ``values.reshape(-1, group_size)`` has a group in each row.
    """

    correct: np.ndarray  # [N] bool, the verifier's verdicts
    scores: np.ndarray  # [N] float64, what the reward gave: 1 or 0 for a yes or no, and 0 where it gave none
    teaches: np.ndarray  # [N] bool; where it is false there is no reward, and what stands there is its group's mean
    parts: Mapping[str, np.ndarray]  # name -> [N] float64, what the rewards were made of; NaN where a sample has none
    lengths: np.ndarray  # [N] int64, response tokens
    num_sampled: np.ndarray  # [N] int64, those of them that the policy sampled: all but for a response mask
    truncated: np.ndarray  # [N] bool
    max_response_tokens: int
    group_size: int
    step: int  # steps that the run has done before this one
    seed: int  # of the run: what is drawn at random is a function of it and the step

    @classmethod
    def of(cls, samples: Sequence[Sample], config: Config, step: int) -> "Outcomes":
        return cls(
            correct=np.array([s.correct for s in samples], dtype=bool),
            scores=np.array([s.score if s.teaches else 0.0 for s in samples], dtype=np.float64),
            teaches=np.array([s.teaches for s in samples], dtype=bool),
            parts=_parts(samples),
            lengths=np.array([len(s.response) for s in samples], dtype=np.int64),
            num_sampled=np.array([s.response.num_sampled_tokens for s in samples], dtype=np.int64),
            truncated=np.array([s.response.finish_reason == "length" for s in samples], dtype=bool),
            max_response_tokens=config.rollout.max_response_tokens,
            group_size=config.rollout.group_size,
            step=step,
            seed=config.seed,
        )


def _parts(samples: Sequence[Sample]) -> dict[str, np.ndarray]:
    names = dict.fromkeys(name for s in samples for name in s.parts)
    return {name: np.array([s.parts.get(name, np.nan) for s in samples], dtype=np.float64) for name in names}


RewardFunction = Callable[[np.ndarray, Outcomes], np.ndarray]
"""(rewards [N], outcomes) -> [N]: what shapes rewards, and what makes advantages of them."""

MetricFunction = Callable[[np.ndarray, Outcomes], Mapping[str, float]]
"""(rewards [N], outcomes) -> name -> number: what a recipe measures of a step."""
