"""Samples of a step -> verdicts -> rewards -> advantages, each noted on the sample."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fastgrpo.algorithm.algorithm import Algorithm
from fastgrpo.algorithm.outcomes import Outcomes
from fastgrpo.config import Config
from fastgrpo.rewards import Item, Signature, Verdict, last_boxed
from fastgrpo.types import Sample


class RecipeError(RuntimeError):
    """A function of the recipe did not do its part; the message names it."""


def items_of(samples: Sequence[Sample], texts: Sequence[str], signature: Signature) -> list[Item]:
    """What the pool is asked about samples of one prompt, with what the reward wants to know by its signature.

    They must be the whole group where ``signature.waits_for_group``; else a part of it will do.
    """
    return [
        Item(text, sample.prompt.answer, {name: _asked_for(name, n, sample, texts) for name in signature.names})
        for n, (sample, text) in enumerate(zip(samples, texts, strict=True))
    ]


def _asked_for(name: str, n: int, sample: Sample, texts: Sequence[str]) -> Any:
    """What a reward gets by this name for the n-th of these samples."""
    match name:
        case "prompt":
            return sample.prompt.text
        case "row":
            return sample.prompt.columns
        case "response_ids":
            return sample.tokens.response_ids.tolist()
        case "finish_reason":
            return sample.response.finish_reason
        case "group":
            return [*texts[:n], *texts[n + 1 :]]
    raise AssertionError(f"signature.py offers {name!r}, which is unknown here")


def judged(sample: Sample, text: str, verdict: Verdict, right_from: float) -> Sample:
    """The sample with its text and verdict; a number counts as right from ``right_from`` on."""
    score, correct = verdict.score, bool(verdict.correct)
    if score is not None and verdict.correct is None:
        correct = verdict.teaches and score >= right_from
    return replace(
        sample,
        text=text,
        correct=correct,
        score=float(correct) if score is None else score,
        graded=score is not None,
        teaches=verdict.teaches,
        parts=verdict.parts,
        unformatted=verdict.unformatted,
        boxed=last_boxed(text) is not None,
        failure=verdict.failure,
    )


def with_rewards(samples: Sequence[Sample], algorithm: Algorithm, config: Config, step: int) -> list[Sample]:
    """The samples with what their verdicts are worth, and what the recipe makes of that. Raises RecipeError.

    One that has no reward gets the mean of its group, which moves nothing.
    """
    if not samples:  # a recipe's functions never see an empty step
        return []
    outcomes, values = Outcomes.of(samples, config, step), config.reward
    rewards = np.where(outcomes.correct, values.correct, values.wrong).astype(np.float32)
    if values.unformatted is not None:
        rewards[[s.unformatted for s in samples]] = values.unformatted
    rewards = _with_group_means(np.where([s.graded for s in samples], outcomes.scores, rewards), outcomes)
    for shape in algorithm.shaping:
        rewards = _with_group_means(of_recipe("shaping", shape, rewards, outcomes), outcomes)
    return [replace(s, reward=float(r)) for s, r in zip(samples, rewards, strict=True)]


def with_advantages(samples: Sequence[Sample], algorithm: Algorithm, config: Config, step: int) -> list[Sample]:
    """The samples with their advantages, from their rewards; 0 for one that has no reward. Raises RecipeError."""
    if not samples:
        return []
    outcomes = Outcomes.of(samples, config, step)
    function = algorithm.advantages_of(config.objective)
    advantages = of_recipe("advantages", function, rewards_of(samples), outcomes)
    return [replace(s, advantage=float(a) if s.teaches else 0.0) for s, a in zip(samples, advantages, strict=True)]


def _with_group_means(rewards: np.ndarray, outcomes: Outcomes) -> np.ndarray:  # [N] -> [N] float32
    """The rewards; where a sample has none, the mean of those of its group, or 0 in a group that has none at all."""
    if outcomes.teaches.all():
        return rewards.astype(np.float32)
    teaches = outcomes.teaches.reshape(-1, outcomes.group_size)
    sums = np.where(teaches, rewards.reshape(teaches.shape), 0.0).sum(axis=1, keepdims=True)
    means = sums / np.maximum(teaches.sum(axis=1, keepdims=True), 1)
    return np.where(outcomes.teaches, rewards, np.broadcast_to(means, teaches.shape).reshape(-1)).astype(np.float32)


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
