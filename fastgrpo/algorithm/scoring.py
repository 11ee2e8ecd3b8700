"""Responses -> verdicts -> rewards -> advantages, of the groups of a step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastgrpo.algorithm.algorithm import Algorithm
from fastgrpo.algorithm.selection import Judged
from fastgrpo.algorithm.shaping import Outcomes
from fastgrpo.config import RewardConfig
from fastgrpo.rewards import VerifierPool
from fastgrpo.types import Group, Response


class RecipeError(RuntimeError):
    """A function of the recipe did not do its part; the message names it."""


@dataclass(frozen=True)
class Scored:
    """The groups that a step trains on, as every rank sees them, and those that it left out."""

    judged: list[Judged]
    dropped: list[Judged]
    rewards: np.ndarray  # [N] float32, of the judged
    advantages: np.ndarray  # [N] float32, of the judged
    sampled_rewards: np.ndarray  # float32, of the dropped too
    counts: dict[str, float]  # what became of the prompts

    @property
    def responses(self) -> list[Response]:
        return [r for j in self.judged for r in j.group.responses]

    @property
    def sampled(self) -> list[Response]:
        """With those left out."""
        return [r for j in (*self.judged, *self.dropped) for r in j.group.responses]


def judge(groups: list[Group], tokenizer: Any, pool: VerifierPool) -> list[Judged]:
    """The groups with their verdicts, in order."""
    ids = [r.response_ids.tolist() for g in groups for r in g.responses]
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True) if ids else []  # a rank may have no prompt
    answers = [g.prompt.answer for g in groups for _ in g.responses]
    verdicts = iter(zip(texts, pool.score(list(zip(texts, answers, strict=True))), strict=True))
    judged = []
    for group in groups:
        mine = [next(verdicts) for _ in group.responses]
        correct = np.array([v.correct for _, v in mine])
        failures = sum(bool(v.failure) for _, v in mine)
        unformatted = np.array([v.unformatted for _, v in mine])
        judged.append(Judged(group, correct, failures, tuple(t for t, _ in mine), unformatted))
    return judged


def rewards_of(
    judged: list[Judged], values: RewardConfig, algorithm: Algorithm, max_response_tokens: int, step: int
) -> np.ndarray:  # [N] float32
    """What verdicts are worth, and what the recipe makes of that. Raises RecipeError."""
    if not judged:  # a recipe's functions never see an empty step
        return np.zeros(0, dtype=np.float32)
    right = np.concatenate([j.correct for j in judged])
    rewards = np.where(right, values.correct, values.wrong).astype(np.float32)
    if values.unformatted is not None:
        rewards[np.concatenate([j.unformatted for j in judged])] = values.unformatted
    if algorithm.shaping:
        outcomes = outcomes_of(judged, right, max_response_tokens, step)
        for shape in algorithm.shaping:
            rewards = of_recipe("shaping", shape, rewards, outcomes)
    return rewards


def outcomes_of(judged: list[Judged], right: np.ndarray, max_response_tokens: int, step: int) -> Outcomes:
    truncated = [r.finish_reason == "length" for j in judged for r in j.group.responses]
    return Outcomes(right, lengths_of(judged), np.array(truncated, dtype=bool), max_response_tokens, step)


def advantages_of(
    rewards: np.ndarray,  # [N]
    lengths: np.ndarray,  # [N]
    algorithm: Algorithm,
    group_size: int,
) -> np.ndarray:  # [N] float32
    """Raises RecipeError."""
    if not len(rewards):
        return rewards
    return of_recipe("advantages", algorithm.advantages, rewards, group_size, lengths)


def of_recipe(part: str, function: Callable[..., Any], values: np.ndarray, *more: Any) -> np.ndarray:  # [N] float32
    """What a recipe's function makes of N values. Raises RecipeError for anything but N finite numbers."""
    name = getattr(function, "__qualname__", type(function).__qualname__)
    try:
        found = function(values, *more)
    except (Exception, SystemExit) as error:  # its author's to hear, whatever it is
        raise RecipeError(f"{name}, of the recipe's {part}, failed: {type(error).__name__}: {error}") from error
    is_array = isinstance(found, np.ndarray)
    if not is_array or found.shape != values.shape or found.dtype.kind not in "fiu" or not np.isfinite(found).all():
        got = f"{found.dtype} {list(found.shape)}" if is_array else type(found).__name__
        if is_array and found.shape == values.shape and found.dtype.kind == "f":
            got = "some that are not finite"
        raise RecipeError(f"{name}, of the recipe's {part}, must return {len(values)} finite numbers, got {got}")
    return found.astype(np.float32)


def lengths_of(judged: list[Judged]) -> np.ndarray:  # [N] int64
    return np.array([len(r) for j in judged for r in j.group.responses], dtype=np.int64)
