"""``torchrun --nproc_per_node N -m fastgrpo.train [recipes/NAME.py] [--section.field value ...]``"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import tyro

from fastgrpo.config import Config, flatten, refuse_old_arguments, with_run_dir
from fastgrpo.policy.losses import token_objective
from fastgrpo.ranks import Ranks, Refused, Role, choose_device, launched_ranks
from fastgrpo.recipe import Recipe, find_recipe, load_recipe
from fastgrpo.recipe.shrink import shrink
from fastgrpo.recipe.validate import arithmetic, validate, validate_phases
from fastgrpo.rollout.engines import engine_kind

EXIT_USER_ERROR = 2
EXIT_FAILED = 1
SAMPLERS_LEAVE_S = 1.0

NAIVE = (
    "fastgrpo: warning: with --rollout.max_staleness 1 tokens come from older weights, and a plain objective takes "
    "them for the policy's own: the quickstart learns and then decays so. --objective.correction truncate mends it"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains. Returns the exit code: 0 done, 2 refused, 75 saved on a signal, 1 anything else."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    rank, _ = launched_ranks()
    is_first = rank == 0
    try:
        recipe = load_recipe(find_recipe(_recipe_name(arguments, is_first)))
        recipe, config = resolve(recipe, [a for i, a in enumerate(arguments) if i or not _is_recipe(a)], is_first)
        role = Role.of_this_rank(config.rollout.gpus)
        validate(config, role.num_trainers)
        validate_phases(recipe.algorithm, config, role.num_trainers)
        token_objective(config.objective)
        engine_kind(config.rollout.engine)
        if is_first:
            _say_what_phases_change(recipe, config)
        if config.dry_run:
            if is_first:
                _print_dry_run(recipe, config, role.num_trainers)
            return 0
        if not role.is_trainer:
            return _sample(recipe.algorithm.widest(config), role)
        device = choose_device(config.device)
    except ValueError as error:
        return _refuse(error, is_first)
    return _train(recipe, config, device, role)


def _sample(config: Config, role: Role) -> int:
    """Raises ValueError if the ranks cannot meet. The GPU is the engine's: nothing of this process may be on it."""
    from fastgrpo.rollout.remote.supervisor import supervise

    on_gpu = config.device != "cpu" and torch.cuda.is_available()
    return supervise(config, role, "cuda" if on_gpu else "cpu")


def _train(recipe: Recipe, config: Config, device: torch.device, role: Role) -> int:
    from fastgrpo.algorithm.scoring import RecipeError
    from fastgrpo.ranks.signals import EXIT_INTERRUPTED, Interrupted
    from fastgrpo.rollout.compare import WeightMismatch
    from fastgrpo.rollout.remote.engine_pool import EngineFailure
    from fastgrpo.rollout.remote.supervisor import OVER
    from fastgrpo.run.checkpoint import CheckpointError
    from fastgrpo.run.setup import train
    from fastgrpo.trainer import TrainingError

    is_first = role.index == 0
    objective = config.objective
    is_naive = objective.correction == "none" and objective.old_logprobs == "recomputed"
    if is_first and is_naive and config.rollout.max_staleness > 0:
        print(NAIVE, flush=True)
    try:
        ranks = Ranks.connect(device, config.parallel, role)
    except ValueError as error:
        return _refuse(error, is_first)
    code = 0
    try:
        try:
            train(recipe, config, ranks)
        finally:
            ranks.watchdog.close()  # it speaks with the store, which ends with the first rank
    # What follows is raised by every rank; anything else leaves as a traceback, and the launcher ends the others.
    except Refused as error:
        code = _refuse(error, is_first)
    except Interrupted as interrupted:
        code = EXIT_INTERRUPTED
        if is_first:
            print(f"fastgrpo: {interrupted}")
    except (TrainingError, RecipeError, CheckpointError, EngineFailure, WeightMismatch) as error:
        code = EXIT_FAILED
        if is_first:
            print(f"fastgrpo: stopped: {error}{_newest_checkpoint(config)}", file=sys.stderr)
    except OSError as error:  # of one rank alone, as a full disk is: the launcher ends the others
        print(f"fastgrpo: rank {launched_ranks()[0]} stopped: {error}; go on with --resume", file=sys.stderr)
        return EXIT_FAILED
    if is_first:
        ranks.store.set(OVER, "1")  # ranks that only sample may go, while the store is there to tell them
        time.sleep(SAMPLERS_LEAVE_S if config.rollout.gpus else 0.0)
    ranks.disconnect()
    return code


def _say_what_phases_change(recipe: Recipe, config: Config) -> None:
    """A setting that was given on the command line holds until a phase of the recipe changes it."""
    given, usual = flatten(config), flatten(recipe.config)
    for phase in recipe.algorithm.phases:
        for name in phase.settings:
            if given[name] != usual[name]:
                print(f"fastgrpo: --{name} {given[name]} holds until the recipe's phase at step {phase.first_step}")


def _newest_checkpoint(config: Config) -> str:
    from fastgrpo.run.checkpoint import committed
    from fastgrpo.run.folder import RunFolder

    saved = committed(RunFolder(Path(config.run_dir)).checkpoints)
    return f". The last checkpoint is {saved[-1]}: go on with --resume" if saved else ""


def resolve(recipe: Recipe, arguments: Sequence[str], is_first: bool = True) -> tuple[Recipe, Config]:
    """The recipe as --fidelity and --shrink make it, and its configuration with what the command line says."""
    config = parse(recipe, arguments, is_first)
    if config.fidelity == "paper" and not config.shrink:
        return recipe, config
    if config.fidelity == "verl":
        recipe = recipe.with_fidelity()
    if config.shrink:
        recipe = shrink(recipe)
    return recipe, parse(recipe, arguments, is_first)


def parse(recipe: Recipe, arguments: Sequence[str], is_first: bool = True) -> Config:
    """The recipe's configuration with what the command line says otherwise. Exits on --help and unknown flags."""
    refuse_old_arguments(arguments)
    parsed = tyro.cli(
        Config,
        prog="fastgrpo train [--ranks N] [RECIPE]",
        description=f"Train by GRPO. The defaults shown are those of the recipe {recipe.path.stem}.",
        args=arguments,
        default=recipe.config,
        config=(tyro.conf.AvoidSubcommands,),
        use_underscores=True,
        console_outputs=is_first,
    )
    return with_run_dir(parsed)


def _is_recipe(argument: str) -> bool:
    return not argument.startswith("-")


def _recipe_name(arguments: Sequence[str], is_first: bool) -> str:
    if arguments and _is_recipe(arguments[0]):
        return arguments[0]
    if late := next((a for a in arguments if a.endswith(".py")), None):
        raise ValueError(f"the recipe comes before the settings: fastgrpo.train {late} --section.field value ...")
    name, why = (
        ("justrl_deepseek_1_5b", f"{torch.cuda.device_count()} CUDA GPUs are visible")
        if torch.cuda.is_available()
        else ("quickstart", "no CUDA GPU is visible")
    )
    if is_first:
        print(f"fastgrpo: no recipe given, taking {name}: {why}", flush=True)
    return name


def _print_dry_run(recipe: Recipe, config: Config, num_ranks: int) -> None:
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
    print()
    for name, value in arithmetic(config, num_ranks).items():
        print(f"  {name}: {value}")


def _refuse(error: ValueError, is_first: bool) -> int:
    if is_first:
        print(f"fastgrpo: {error}", file=sys.stderr, flush=True)
    else:
        time.sleep(2)  # torchrun ends all ranks when one exits, and the first must have spoken by then
    return EXIT_USER_ERROR


if __name__ == "__main__":
    sys.exit(main())
