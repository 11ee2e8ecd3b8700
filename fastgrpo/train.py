"""``fastgrpo train [RECIPE] [--ranks N] [--section.field value ...]``, and a rank of it, which torchrun may start too:
``torchrun --nproc_per_node N -m fastgrpo.train [RECIPE] [--section.field value ...]``."""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from fastgrpo.command_line import exit_codes, ignore_lost_output, run_command
from fastgrpo.command_line.system_errors import in_words
from fastgrpo.config import Config, flatten
from fastgrpo.ranks import Ranks, Refused, Role, choose_device, is_of_a_lost_rank, launched_ranks
from fastgrpo.ranks.launch import default_num_ranks, launch
from fastgrpo.ranks.limits import require_open_files
from fastgrpo.ranks.one_machine import is_on_one_machine, reach_other_machines, unreachable_name
from fastgrpo.ranks.secret import launch_secret
from fastgrpo.recipe import Recipe
from fastgrpo.recipe.arguments import asked_run, require_valid, take_ranks
from fastgrpo.recipe.dry_run import print_dry_run
from fastgrpo.rollout.engines import engine_kind
from fastgrpo.run.hub import require_inputs
from fastgrpo.track import require_trackers

SAMPLERS_LEAVE_S = 1.0

OPEN = (
    "fastgrpo: note: on several nodes the ports of torch's store, of gloo and of NCCL are open to the network, and "
    "torch asks nobody who they are: use a network that you trust (docs/stopping.md)"
)

NAIVE = (
    "fastgrpo: warning: with --rollout.max_staleness 1 tokens come from older weights, and a plain objective takes "
    "them for the policy's own: the quickstart learns and then decays so. --objective.correction truncate mends it"
)


def command(arguments: Sequence[str]) -> int:
    """``fastgrpo train``: what cannot run is refused here, and what only asks is answered, before a rank is started.

    Returns the exit code, of ``fastgrpo.command_line.exit_codes``.
    """
    _go_on_unheard(arguments)
    try:
        num_ranks, arguments = take_ranks(arguments)
        recipe, config, settings = asked_run(arguments)
        engine_kind(config.rollout.engine)
        if config.dry_run:
            return _dry_run(recipe, config, num_ranks)
        require_trackers(config.track)
        require_open_files()
        num_ranks = num_ranks or default_num_ranks(config.model.path, recipe.ranks)
        role = Role.of(0, num_ranks, 0, num_ranks, config.rollout.gpus)
        require_valid(recipe, config, role.num_trainers)
        if not torch.cuda.is_available():
            choose_device(config.device)  # on a GPU, a rank's own
        if recipe.prepare is None:  # else what it makes is not there yet
            require_inputs(recipe.algorithm.configs(config))
    except ValueError as error:
        return _refuse(error)
    _reach_servers(config)
    return launch([str(recipe.path), *settings], num_ranks)


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains as one rank of a launch. Returns the exit code, as ``command`` does."""
    arguments = sys.argv[1:] if arguments is None else arguments
    _go_on_unheard(arguments)
    try:
        rank, count = launched_ranks()
    except ValueError as error:
        return _refuse(error)
    is_first = rank == 0
    try:
        recipe, config, _ = asked_run(arguments, is_first)
        engine_kind(config.rollout.engine)
        if config.dry_run:
            launched = (count, int(os.environ.get("LOCAL_WORLD_SIZE", count))) if "WORLD_SIZE" in os.environ else ()
            return _dry_run(recipe, config, *launched) if is_first else exit_codes.DONE
        require_open_files()
        launch_secret()  # out of the environment before there are children
        if config.rollout.servers:
            from fastgrpo.rollout.servers.start import environment_key

            environment_key()
        role = Role.of_this_rank(config.rollout.gpus)
        require_valid(recipe, config, role.num_trainers)
        if is_first:
            _say_what_phases_change(recipe, config)
        if not role.is_trainer:
            return _sample(recipe.algorithm.widest(config), role)
        device = choose_device(config.device)
    except ValueError as error:
        return _refuse(error, is_first)
    _reach_servers(config)
    return _train(recipe, config, device, role)


def _go_on_unheard(arguments: Sequence[str]) -> None:
    """Trains even if nobody reads what it prints; an answer to --help or --dry_run is made to be read."""
    if not any(a.partition("=")[0] in ("-h", "--help", "--dry_run", "--dry-run") for a in arguments):
        ignore_lost_output()


def _reach_servers(config: Config) -> None:
    if config.rollout.servers:
        from fastgrpo.rollout.servers.start import are_elsewhere

        if are_elsewhere(config.rollout.servers):
            reach_other_machines(os.environ)


def _dry_run(recipe: Recipe, config: Config, num_ranks: int | None = None, per_node: int | None = None) -> int:
    require_trackers(config.track)
    _say_what_phases_change(recipe, config)
    print_dry_run(recipe, config, num_ranks, per_node)
    return exit_codes.DONE


def _sample(config: Config, role: Role) -> int:
    """Raises ValueError if the ranks cannot meet. The GPU is the engine's: nothing of this process may be on it."""
    from fastgrpo.rollout.servers.own import run_server

    on_gpu = config.device != "cpu" and torch.cuda.is_available()
    return run_server(config, role, "cuda" if on_gpu else "cpu")


def _train(recipe: Recipe, config: Config, device: torch.device, role: Role) -> int:
    from fastgrpo.algorithm.scoring import RecipeError
    from fastgrpo.ranks.signals import Interrupted
    from fastgrpo.rollout.compare_weights import WeightMismatch
    from fastgrpo.rollout.servers.key import OVER
    from fastgrpo.rollout.servers.pool import ServerFailure
    from fastgrpo.run.checkpoint import CheckpointError
    from fastgrpo.run.setup import CannotStart, train
    from fastgrpo.trainer import TrainingError

    is_first = role.index == 0
    objective = config.objective
    is_naive = objective.correction == "none" and objective.old_logprobs == "recomputed"
    if is_first and is_naive and recipe.algorithm.loss is None and config.rollout.max_staleness > 0:
        print(NAIVE, flush=True)
    if is_first and not is_on_one_machine():
        print(OPEN, flush=True)
    if problem := unreachable_name():
        print(f"fastgrpo: warning: {problem}", flush=True)
    try:
        ranks = Ranks.connect(device, config.parallel, role)
    except ValueError as error:
        return _refuse(error, is_first)
    code = exit_codes.DONE
    try:
        try:
            train(recipe, config, ranks)
        finally:
            ranks.watchdog.close()  # it speaks with the store, which ends with the first rank
    # What follows is raised by every rank; anything else leaves as a traceback, and the launcher ends the others.
    except Refused as error:
        code = _refuse(error, is_first)
    except Interrupted as interrupted:
        code = exit_codes.SAVED
        if is_first:
            print(f"fastgrpo: {interrupted}")
    except (TrainingError, RecipeError, CheckpointError, ServerFailure, WeightMismatch) as error:
        code = exit_codes.FAILED
        if is_first:
            print(f"fastgrpo: stopped: {error}{_newest_checkpoint(config)}", file=sys.stderr)
    except CannotStart as error:  # of one rank alone, as what follows: the launcher ends the others
        print(f"fastgrpo: rank {launched_ranks()[0]} cannot start: {error}", file=sys.stderr)
        return exit_codes.REFUSED
    except OSError as error:  # as a full disk is
        print(
            f"fastgrpo: rank {launched_ranks()[0]} stopped: {in_words(error)}{_newest_checkpoint(config)}",
            file=sys.stderr,
        )
        return exit_codes.FAILED
    except RuntimeError as error:
        if not is_of_a_lost_rank(error):
            raise
        print(f"fastgrpo: rank {launched_ranks()[0]} stopped: another rank is gone", file=sys.stderr)
        return exit_codes.FAILED
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


def _refuse(error: ValueError, is_first: bool = True) -> int:
    if is_first:
        print(f"fastgrpo: {error}", file=sys.stderr, flush=True)
    else:
        time.sleep(2)  # torchrun ends all ranks when one exits, and the first must have spoken by then
    return exit_codes.REFUSED


if __name__ == "__main__":
    run_command(main, is_rank="RANK" in os.environ)
