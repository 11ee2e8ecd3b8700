"""Samples of a step -> verdicts -> rewards -> advantages, each noted on the sample."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fastgrpo.algorithm.algorithm import Algorithm
from fastgrpo.algorithm.outcomes import Outcomes
from fastgrpo.config import Config
from fastgrpo.rewards import VerifierPool
from fastgrpo.types import Group, Sample


class RecipeError(RuntimeError):
    """A function of the recipe did not do its part; the message names it."""


def judge(groups: Sequence[Group], tokenizer: Any, pool: VerifierPool) -> list[Group]:
    """The groups with their texts and verdicts, in order."""
    samples = [sample for group in groups for sample in group]
    ids = [s.response.response_ids.tolist() for s in samples]
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True) if ids else []  # a rank may have no prompt
    verdicts = pool.score([(text, s.prompt.answer) for text, s in zip(texts, samples, strict=True)])
    judged = iter(
        replace(s, text=text, correct=v.correct, score=float(v.correct), unformatted=v.unformatted, failure=v.failure)
        for s, text, v in zip(samples, texts, verdicts, strict=True)
    )
    return [[next(judged) for _ in group] for group in groups]


def with_rewards(samples: Sequence[Sample], algorithm: Algorithm, config: Config, step: int) -> list[Sample]:
    """The samples with what their verdicts are worth, and what the recipe makes of that. Raises RecipeError."""
    if not samples:  # a recipe's functions never see an empty step
        return []
    outcomes, values = Outcomes.of(samples, config, step), config.reward
    rewards = np.where(outcomes.correct, values.correct, values.wrong).astype(np.float32)
    if values.unformatted is not None:
        rewards[[s.unformatted for s in samples]] = values.unformatted
    for shape in algorithm.shaping:
        rewards = of_recipe("shaping", shape, rewards, outcomes)
    return [replace(s, reward=float(r)) for s, r in zip(samples, rewards, strict=True)]


def with_advantages(samples: Sequence[Sample], algorithm: Algorithm, config: Config, step: int) -> list[Sample]:
    """The samples with their advantages, from their rewards. Raises RecipeError."""
    if not samples:
        return []
    outcomes = Outcomes.of(samples, config, step)
    function = algorithm.advantages_of(config.objective)
    advantages = of_recipe("advantages", function, rewards_of(samples), outcomes)
    return [replace(s, advantage=float(a)) for s, a in zip(samples, advantages, strict=True)]


def rewards_of(samples: Sequence[Sample]) -> np.ndarray:  # [N] float32
    return np.array([s.reward for s in samples], dtype=np.float32)


def of_recipe(
    part: str, function: Callable[[np.ndarray, Outcomes], Any], values: np.ndarray, outcomes: Outcomes
) -> np.ndarray:  # [N] float32
    """What a recipe's function makes of N values. Raises RecipeError for anything but N finite numbers."""
    name = getattr(function, "__qualname__", type(function).__qualname__)
    try:
        found = function(values, outcomes)
    except (Exception, SystemExit) as error:  # whatever the recipe's code raises
        raise RecipeError(f"{name}, of the recipe's {part}, failed: {type(error).__name__}: {error}") from error
    is_array = isinstance(found, np.ndarray)
    if not is_array or found.shape != values.shape or found.dtype.kind not in "fiu" or not np.isfinite(found).all():
        got = f"{found.dtype} {list(found.shape)}" if is_array else type(found).__name__
        if is_array and found.shape == values.shape and found.dtype.kind == "f":
            got = "some that are not finite"
        raise RecipeError(f"{name}, of the recipe's {part}, must return {len(values)} finite numbers, got {got}")
    return found.astype(np.float32)
