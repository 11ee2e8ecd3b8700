"""Which run is asked about: a recipe's, or one of a model and its data."""

from dataclasses import dataclass, replace
from pathlib import Path

import fastgrpo.rewards
from fastgrpo.command_line import did_you_mean, expanded
from fastgrpo.config import Config, DataConfig, ModelConfig, given_on, with_settings
from fastgrpo.inspection.options import Options
from fastgrpo.recipe import Recipe
from fastgrpo.recipe.arguments import asked_run, resolve
from fastgrpo.recipe.validate import require_ranges
from fastgrpo.rewards import strict_boxed
from fastgrpo.rewards.pool.load import locate_reward

LIMIT = {"cpu": 192, "cuda": 2048}
"""Tokens at which responses are cut unless the command line says otherwise: enough to see how they begin and mostly
how they end, in minutes."""
IN_THIS_PROCESS = {
    "rollout.engine": "builtin",
    "rollout.servers": (),
    "rollout.gpus": 0,
    "rollout.tensor_parallel": 1,
    "rollout.kv_cache_gib": 0.0,
    "rollout.sleep_level": 0,
}
"""Settings by which the built-in engine samples here, whatever samples in the run."""


@dataclass(frozen=True)
class Asked:
    """A run, and how it is looked at."""

    recipe: Recipe
    config: Config  # of the run, but for what samples
    limit_given: bool  # whether the command line says how long responses may be

    def sampled(self, device: str, answers: int) -> Config:
        """The settings by which responses are drawn and judged here."""
        limit = self.config.rollout.max_response_tokens
        limit = limit if self.limit_given else min(limit, LIMIT.get(device, limit))
        return with_settings(self.config, {"rollout.group_size": answers, "rollout.max_response_tokens": limit})


def asked_of(options: Options) -> Asked:
    """What the options ask about. Raises ValueError for a recipe, a reward or a setting that there is not."""
    if len(options.places) == 2:
        recipe, config = resolve(_without_recipe(*options.places), options.settings)
    else:
        recipe, config = _of_recipe(options)
    require_ranges(config)
    if options.reward:
        recipe = with_reward(recipe, options.reward)
    if config.rollout.dtype == "fp8":
        config = with_settings(config, {"rollout.dtype": "auto"})
    limit_given = any(name == "rollout.max_response_tokens" for name, _ in given_on(options.settings))
    return Asked(recipe, with_settings(config, IN_THIS_PROCESS), limit_given)


def _of_recipe(options: Options) -> tuple[Recipe, Config]:
    try:
        recipe, config, _ = asked_run([*options.places, *options.settings])
    except ValueError as error:
        if options.places and (Path(expanded(options.places[0])) / "config.json").is_file():
            raise ValueError(
                f"{options.places[0]} is a model: name its data too, fastgrpo inspect MODEL DATA"
            ) from error
        raise
    return recipe, config


def _without_recipe(model: str, data: str) -> Recipe:
    config = Config(name="inspect", model=ModelConfig(path=expanded(model)), data=DataConfig(train=expanded(data)))
    return with_reward(Recipe(Path(model), config, ""), strict_boxed.__name__)


def with_reward(recipe: Recipe, reward: str) -> Recipe:
    """The recipe with another reward: a verifier's name, FILE.py:FUNCTION or package.module:function. Raises
    ValueError."""
    if ":" in reward:
        place, _ = locate_reward(expanded(reward))
        return replace(recipe, reward=place, function=None, self_test=())
    return replace(recipe, reward=place_of(reward), function=getattr(fastgrpo.rewards, reward), self_test=())


def place_of(verifier: str) -> str:
    """Where a verifier that is shipped is imported from, by its name. Raises ValueError if there is none."""
    names = verifier_names()
    if verifier not in names:
        raise ValueError(
            f"there is no verifier {verifier!r}{did_you_mean(verifier, names) or ':'} needed one of "
            f"{', '.join(names)}, or FILE.py:FUNCTION"
        )
    return f"{getattr(fastgrpo.rewards, verifier).__module__}:{verifier}"


def verifier_names() -> list[str]:
    """The verifiers that are shipped: all of ``fastgrpo.rewards`` that know some answers."""
    return [name for name in fastgrpo.rewards.__all__ if hasattr(getattr(fastgrpo.rewards, name), "known_answers")]
