"""The processes that judge, tried before anything is drawn."""

from dataclasses import replace

from fastgrpo.config import RewardConfig
from fastgrpo.data import with_columns
from fastgrpo.recipe import Recipe
from fastgrpo.rewards import MADE_UP, Item, VerifierPool
from fastgrpo.types import Prompt


def example_of(first: Prompt, source: str, with_row: bool) -> Item:
    """What the reward is tried on: a made-up response to the first problem of the data."""
    if with_row:  # which is read once more, whole
        first = with_columns([first], source)[0]
    return MADE_UP._replace(answer=first.answer, named={**MADE_UP.named, "prompt": first.text, "row": first.columns})


def start_pool(recipe: Recipe, settings: RewardConfig, example: Item, workers: int | None = None) -> VerifierPool:
    """The pool of a recipe's reward. Raises ValueError if the reward cannot be loaded, fails its self-test, or does not
    return a judgement on the example."""
    settings = settings if workers is None else replace(settings, workers=workers)
    try:
        return VerifierPool(
            recipe.reward,
            settings.workers,
            settings.timeout_s,
            settings.memory_limit_gib,
            recipe.self_test or None,
            example=example,
            concurrency=settings.concurrency,
        )
    except RuntimeError as error:
        raise ValueError(str(error)) from error
