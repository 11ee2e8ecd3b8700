"""Several processes that draw responses, each on GPUs of its own, into files of its own.

``python -m fastgrpo.evaluation.ranks SETTINGS RANK`` is one of them. They do not talk to each other: a rank's problems
are a function of its number, and the files say which responses exist.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fastgrpo.command_line import exit_codes, ignore_lost_output, run_command
from fastgrpo.evaluation.folder import EvaluationFolder
from fastgrpo.evaluation.generate import generate, prepare
from fastgrpo.evaluation.plan import Plan, facts_of, make_plan
from fastgrpo.evaluation.progress import StageProgress
from fastgrpo.evaluation.records import generation_files
from fastgrpo.evaluation.settings import Settings
from fastgrpo.ranks import choose_device
from fastgrpo.ranks.children import ending_with_parent
from fastgrpo.ranks.signals import Interrupted, signals_noted, stop_if_noted

POLL_S = 0.2
GRACE_S = 20.0
"""Time that a rank has between SIGTERM and SIGKILL."""

Child = subprocess.Popen[bytes]


class RankFailed(Exception):
    """A rank ended with an error or was killed. The responses that it had drawn are on disk."""


def generate_on_ranks(
    settings: Settings, plan: Plan, folder: EvaluationFolder, device: torch.device, check: Callable[[], None]
) -> None:
    """Draws the missing responses in ``settings.ranks`` processes.

    Raises RankFailed for the first rank that fails, and ValueError if there are too few GPUs.
    """
    missing = sum(len(keys) for _, keys in folder.missing(plan))
    if not missing:
        return
    if device.type == "cuda":
        _gpus_of(settings.ranks - 1, settings)
    counter = _NewRows(folder, plan)
    children = [_start(settings, rank, device) for rank in range(settings.ranks)]
    try:
        with StageProgress("responses", plan.num_responses, plan.num_responses - missing) as progress:
            while any(child.poll() is None for child in children):
                time.sleep(POLL_S)
                progress.advance(counter.count())
                check()
                _raise_if_one_failed(children)
            progress.advance(counter.count())
        _raise_if_one_failed(children)
    finally:
        _end(children)


class _NewRows:
    """Counts the rows that the ranks add to their files."""

    def __init__(self, folder: EvaluationFolder, plan: Plan) -> None:
        self.folder, self.names = folder.path, [b.name for b in plan.benchmarks]
        self.read: dict[Path, int] = {path: path.stat().st_size for path in self._files()}

    def count(self) -> int:
        """Number of rows since the last call."""
        count = 0
        for path in self._files():
            with path.open("rb") as file:
                file.seek(self.read.get(path, 0))
                added = file.read()
            self.read[path] = self.read.get(path, 0) + len(added)
            count += added.count(b"\n")
        return count

    def _files(self) -> list[Path]:
        return [path for name in self.names for path in generation_files(self.folder, name)]


def _start(settings: Settings, rank: int, device: torch.device) -> Child:
    """Starts a rank in a session of its own: a Ctrl-C reaches only this process, which then ends the ranks."""
    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // settings.ranks)))
    if device.type == "cuda":
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(_gpus_of(rank, settings))
    command = [sys.executable, "-m", "fastgrpo.evaluation.ranks", json.dumps(asdict(settings)), str(rank)]
    return subprocess.Popen(ending_with_parent(command), env=environment, start_new_session=True)


def _gpus_of(rank: int, settings: Settings) -> list[str]:
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = given.split(",") if given else [str(i) for i in range(torch.cuda.device_count())]
    each = settings.tensor_parallel
    if settings.ranks * each > len(visible):
        raise ValueError(f"--ranks {settings.ranks} x --tensor_parallel {each} needs more GPUs than {len(visible)}")
    return visible[rank * each : (rank + 1) * each]


def _raise_if_one_failed(children: list[Child]) -> None:
    for rank, child in enumerate(children):
        if child.poll() == exit_codes.SAVED:
            raise Interrupted(f"rank {rank} was stopped by a signal; the same command goes on from here")
        if child.poll():
            raise RankFailed(f"rank {rank} ended with {child.returncode}; the same command goes on from here")


def _end(children: list[Child]) -> None:
    for child in children:
        if child.poll() is None:
            child.terminate()
    end = time.monotonic() + GRACE_S
    for child in children:
        try:
            child.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def main() -> int:
    ignore_lost_output()
    given: dict[str, Any] = json.loads(sys.argv[1])
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
    rank = int(sys.argv[2])
    settings = Settings(**values)
    plan = make_plan(settings)
    folder = EvaluationFolder(Path(settings.out) / settings.folder_name)
    try:
        with folder.lock().joined(), signals_noted() as noted:
            device, prepared = choose_device(settings.device), prepare(settings, plan)
            folder.require_same(facts_of(settings, plan, prepared.identities))
            generate(settings, plan, folder, prepared, device, partial(stop_if_noted, noted), rank)
    except Interrupted:
        return exit_codes.SAVED
    except (ValueError, OSError) as error:
        print(f"fastgrpo: rank {rank}: {error}", file=sys.stderr, flush=True)
        return exit_codes.FAILED
    return exit_codes.DONE


if __name__ == "__main__":
    run_command(main, is_rank=True)
