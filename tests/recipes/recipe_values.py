"""What a recipe holds, by the paths that ``published.Run`` uses."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from fastgrpo.config import flatten
from fastgrpo.recipe import Recipe, find_recipe, load_recipe


@cache
def shipped(name: str) -> Recipe:
    """A recipe that comes with fastgrpo."""
    return load_recipe(find_recipe(name))


def values_of(recipe: Recipe) -> dict[str, Any]:
    """The verifier's name, every part of the algorithm and every setting."""
    parts = {f"algorithm.{part}": value for part, value in recipe.algorithm.describe().items()}
    return {"reward": recipe.reward.rpartition(":")[2], **parts, **flatten(recipe.config)}


def value_at(values: Mapping[str, Any], path: str) -> Any:
    """The value at a path, which may go on inside a part: ``algorithm.shaping.Cycled.on_steps`` is the ``on_steps`` of
    the shaping that is a Cycled. None where the part does not have it. Raises KeyError where there is no such part."""
    if path in values:
        return values[path]
    algorithm, part, *inside = path.split(".")
    value = values[f"{algorithm}.{part}"]
    for step in inside:
        if isinstance(value, list):
            value = next((v for v in value if isinstance(v, Mapping) and v.get("is") == step), None)
        else:
            value = value.get(step) if isinstance(value, Mapping) else None
    return value
