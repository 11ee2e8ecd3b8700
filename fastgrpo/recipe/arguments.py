"""``[RECIPE] [--section.field value ...]``: which run a command line asks for."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import tyro

from fastgrpo.config import (
    PARTS,
    Config,
    given_on,
    refuse_old_arguments,
    refuse_unknown_choices,
    with_paths,
    with_settings,
)
from fastgrpo.recipe.find import find_recipe, recipe_names
from fastgrpo.recipe.help import print_help
from fastgrpo.recipe.recipe import Recipe, load_recipe
from fastgrpo.recipe.shrink import shrink
from fastgrpo.recipe.validate import validate, validate_phases


def take_ranks(arguments: Sequence[str]) -> tuple[int | None, list[str]]:
    """The number that ``--ranks N`` gives, None without it, and the other arguments. Raises ValueError for another
    value than a number of at least 1."""
    num_ranks, others, coming = None, [], iter(arguments)
    for argument in coming:
        name, given, value = argument.partition("=")
        if name != "--ranks":
            others.append(argument)
            continue
        value = value if given else next(coming, "")
        if not (value.isdecimal() and int(value) >= 1):
            raise ValueError(f"--ranks needs a number of at least 1, got {value or 'nothing'}")
        num_ranks = int(value)
    return num_ranks, others


def asked_run(arguments: Sequence[str], is_first: bool = True) -> tuple[Recipe, Config, list[str]]:
    """The recipe, its configuration with what the command line says otherwise, and the settings of that, without the
    recipe. Exits on --help and unknown flags; raises ValueError for a recipe that there is not or that cannot be run.
    """
    given = arguments[:1] if arguments and not arguments[0].startswith("-") else []
    settings, wants_help = list(arguments[len(given) :]), any(a in ("-h", "--help") for a in arguments)
    name = given[0] if given else _usual_recipe(settings, say=is_first and not wants_help)
    recipe = load_recipe(find_recipe(name))
    if wants_help:
        if is_first:
            print_help(recipe)
        raise SystemExit(0)
    return *resolve(recipe, settings, is_first), settings


def resolve(recipe: Recipe, settings: Sequence[str], is_first: bool = True) -> tuple[Recipe, Config]:
    """The recipe as --fidelity and --shrink make it, and its configuration with what the command line says."""
    config = parse(recipe, settings, is_first)
    if config.fidelity == "paper" and not config.shrink:
        return recipe, config
    if config.fidelity == "verl":
        recipe = recipe.with_fidelity()
        _refuse_another_loss(recipe, settings)
    if config.shrink:
        recipe = shrink(recipe)
    return recipe, parse(recipe, settings, is_first)


def require_valid(recipe: Recipe, config: Config, num_trainers: int) -> None:
    """Raises ValueError, with the numbers, for what cannot run on so many ranks, now or in a later phase."""
    validate(config, num_trainers, recipe.algorithm)
    validate_phases(recipe.algorithm, config, num_trainers)


def parse(recipe: Recipe, settings: Sequence[str], is_first: bool = True) -> Config:
    """The recipe's configuration with what the command line says otherwise. Exits on unknown flags.

    A loss that it names brings its parts in the place of the recipe's, and the parts that it names win over those.
    """
    refuse_old_arguments(settings)
    refuse_unknown_choices(settings)
    losses = [value for name, value in given_on(settings) if name == "objective.loss"]
    default = with_settings(recipe.config, {"objective.loss": losses[-1]}) if losses else recipe.config
    parsed = tyro.cli(
        Config,
        prog="fastgrpo train",
        args=settings,
        default=default,
        config=(tyro.conf.AvoidSubcommands,),
        use_underscores=True,
        console_outputs=is_first,
    )
    return with_paths(parsed)


def _refuse_another_loss(recipe: Recipe, settings: Sequence[str]) -> None:
    """Raises ValueError where a loss on the command line would undo what --fidelity verl changes of the recipe's."""
    changed = [name for name in recipe.fidelity if name.removeprefix("objective.") in PARTS]
    if changed and any(name == "objective.loss" for name, _ in given_on(settings)):
        raise ValueError(
            f"--objective.loss brings a loss of its own, and --fidelity verl changes --{changed[0]} of the recipe's: "
            f"leave one of them"
        )


def _usual_recipe(settings: Sequence[str], say: bool) -> str:
    names = recipe_names()
    after = pairwise(["", *settings])
    if late := next((s for b, s in after if s.endswith(".py") or (s in names and not b.startswith("-"))), None):
        raise ValueError(f"the recipe comes before the settings: fastgrpo train {late} --section.field value ...")
    name, why = (
        ("justrl_deepseek_1_5b", f"{torch.cuda.device_count()} CUDA GPUs are visible")
        if torch.cuda.is_available()
        else ("quickstart", "no CUDA GPU is visible")
    )
    if say:
        print(f"fastgrpo: no recipe given, taking {name}: {why}", flush=True)
    return name
