"""``fastgrpo train RECIPE --dry_run``: a run as it would be, on the ranks that it needs, on any machine."""

import json

from fastgrpo.config import Config, flatten
from fastgrpo.ranks import Role
from fastgrpo.recipe.arguments import require_valid
from fastgrpo.recipe.recipe import Recipe
from fastgrpo.recipe.validate import arithmetic

NODE = 8  # ranks of a node of the machines that recipes name
MOST_RANKS = 64


def print_dry_run(recipe: Recipe, config: Config, num_ranks: int | None, per_node: int | None = None) -> None:
    """Prints settings, algorithm and the arithmetic of a step.

    Without ``num_ranks`` on the ranks that the recipe names, else on the fewest that it can run on; without
    ``per_node`` all of the given ranks are on one node. Raises ValueError if it cannot run on so many ranks.
    """
    taken, why = _ranks(recipe, config, num_ranks)
    if num_ranks is None and taken == recipe.ranks and taken % NODE == 0:
        per_node = NODE
    num_trainers = _num_trainers(config, taken, per_node or taken)
    require_valid(recipe, config, num_trainers)
    print(f"recipe {recipe.path}\nverifier {recipe.reward}\n")
    settings, usual = flatten(config), flatten(Config())
    changed = {name for name, value in settings.items() if value != usual[name]}
    for title, names in (("set by the recipe or the command line", changed), ("defaults", settings.keys() - changed)):
        print(f"{title}:")
        for name in settings:
            if name in names:
                value = settings[name]
                print(f"  --{name} {json.dumps(value) if isinstance(value, str) else value}")
        print()
    for name, value in recipe.algorithm.describe().items():
        print(f"  algorithm.{name}: {value}")
    print(f"\nshown on {taken} rank{'s' if taken > 1 else ''}, {why}; --ranks N shows another number")
    for name, value in arithmetic(config, num_trainers).items():
        print(f"  {name}: {value}")


def _ranks(recipe: Recipe, config: Config, num_ranks: int | None) -> tuple[int, str]:
    """The number of ranks that is shown, and why that."""
    if num_ranks is not None:
        return num_ranks, "as asked"
    if recipe.ranks is not None and not config.shrink:
        return recipe.ranks, "which the recipe names"
    return _fewest_ranks(recipe, config), "the fewest that it can run on"


def _fewest_ranks(recipe: Recipe, config: Config) -> int:
    """Raises ValueError, with the reason on one rank, if it runs on no number of them."""
    refusal = None
    for num_ranks in range(1, MOST_RANKS + 1):
        try:
            require_valid(recipe, config, _num_trainers(config, num_ranks, num_ranks))
        except ValueError as error:
            refusal = refusal or error
        else:
            return num_ranks
    assert refusal is not None
    raise refusal


def _num_trainers(config: Config, num_ranks: int, per_node: int) -> int:
    return Role.of(0, num_ranks, 0, per_node, config.rollout.gpus).num_trainers
