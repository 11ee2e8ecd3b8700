"""What a recipe measures of a step, and what its rewards were made of."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastgrpo.algorithm.algorithm import Algorithm
from fastgrpo.algorithm.outcomes import MetricFunction, Outcomes
from fastgrpo.algorithm.scoring import RecipeError, rewards_of
from fastgrpo.config import Config
from fastgrpo.types import Sample

PLAIN = re.compile(r"\w[\w.-]*")


def reward_metrics(samples: Sequence[Sample]) -> dict[str, float]:
    """``reward/NAME``, the mean of a named part over the samples in which it is a finite number, and the counts of
    those without a reward: None is told from NaN and infinite."""
    parts: dict[str, list[float]] = {}
    for sample in samples:
        for name, value in sample.parts.items():
            if math.isfinite(value):
                parts.setdefault(f"reward/{name}", []).append(value)
    return {
        **{name: float(np.mean(values)) for name, values in sorted(parts.items())},
        "responses_without_reward": sum(not s.teaches and not s.graded for s in samples),
        "rewards_not_finite": sum(not s.teaches and s.graded for s in samples),
    }


def recipe_metrics(samples: Sequence[Sample], algorithm: Algorithm, config: Config, step: int) -> dict[str, float]:
    """``recipe/NAME`` of the recipe's own metrics. Raises RecipeError."""
    assert isinstance(algorithm.metrics, tuple)
    if not (samples and algorithm.metrics):
        return {}
    outcomes, rewards = Outcomes.of(samples, config, step), rewards_of(samples)
    found: dict[str, float] = {}
    for function in algorithm.metrics:
        for name, value in _measured(function, rewards, outcomes).items():
            if f"recipe/{name}" in found:
                raise RecipeError(f"{_name_of(function)}, of the recipe's metrics: another function gives {name!r} too")
            found[f"recipe/{name}"] = float(value)
    return found


def _measured(function: MetricFunction, rewards: np.ndarray, outcomes: Outcomes) -> Mapping[str, float]:
    """What one function gives. Raises RecipeError for anything but finite numbers under plain names."""
    about = f"{_name_of(function)}, of the recipe's metrics,"
    try:
        found = function(rewards, outcomes)
    except (Exception, SystemExit) as error:  # whatever the recipe's code raises
        raise RecipeError(f"{about} failed: {type(error).__name__}: {error}") from error
    if not isinstance(found, Mapping):
        raise RecipeError(f"{about} must return names with their numbers, got {type(found).__name__}")
    for name, value in found.items():
        if not isinstance(name, str) or not PLAIN.fullmatch(name):
            raise RecipeError(f"{about} must use names of letters, digits, _, - and dots, got {name!r}")
        if not isinstance(value, int | float | np.integer | np.floating) or not math.isfinite(value):
            got = value if isinstance(value, float | np.floating) else type(value).__name__
            raise RecipeError(f"{about} must give a finite number for {name}, got {got}; leave out what there is not")
    return found


def _name_of(function: Any) -> str:
    return getattr(function, "__qualname__", type(function).__qualname__)
