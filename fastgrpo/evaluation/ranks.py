"""Several processes that draw, each on GPUs of its own, into files of their own.

``python -m fastgrpo.evaluation.ranks SETTINGS RANK`` is one of them. They need not meet: which problems are a rank's is
a function of its number, and what is drawn already stands in the files.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fastgrpo.evaluation.folder import EvaluationFolder
from fastgrpo.evaluation.generate import generate, prepare
from fastgrpo.evaluation.interrupts import Interrupted, interrupts_noted
from fastgrpo.evaluation.plan import Plan, make_plan
from fastgrpo.evaluation.progress import StageProgress
from fastgrpo.evaluation.records import generation_files
from fastgrpo.evaluation.settings import Settings
from fastgrpo.ranks import choose_device

LOOK_S = 0.2
GRACE_S = 20.0
EXIT_INTERRUPTED = 75

Child = subprocess.Popen[bytes]


class RankFailed(Exception):
    """A rank ended by itself or was ended; what it had drawn is on disk."""


def generate_on_ranks(
    settings: Settings, plan: Plan, folder: EvaluationFolder, device: torch.device, check: Callable[[], None]
) -> None:
    """Draws what is missing on ``settings.ranks`` processes. Raises RankFailed with the first that does, ValueError if
    there are too few GPUs."""
    missing = sum(len(keys) for _, keys in folder.missing(plan))
    if not missing:
        return
    if device.type == "cuda":
        _gpus_of(settings.ranks - 1, settings)
    growth = _Growth(folder, plan)
    children = [_start(settings, rank, device) for rank in range(settings.ranks)]
    try:
        with StageProgress("responses", plan.num_responses, plan.num_responses - missing) as progress:
            while any(child.poll() is None for child in children):
                time.sleep(LOOK_S)
                progress.advance(growth.rows())
                check()
                _require_well(children)
            progress.advance(growth.rows())
        _require_well(children)
    finally:
        _end(children)


class _Growth:
    """Counts the rows that the ranks add."""

    def __init__(self, folder: EvaluationFolder, plan: Plan) -> None:
        self.folder, self.names = folder.path, [b.name for b in plan.benchmarks]
        self.read: dict[Path, int] = {path: path.stat().st_size for path in self._files()}

    def rows(self) -> int:
        """Since it was asked before."""
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
    """Each hears a Ctrl-C from here alone, in a session of its own."""
    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // settings.ranks)))
    if device.type == "cuda":
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(_gpus_of(rank, settings))
    command = [sys.executable, "-m", "fastgrpo.evaluation.ranks", json.dumps(asdict(settings)), str(rank)]
    return subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=_die_with_parent)


def _die_with_parent() -> None:
    """A rank whose parent was killed would write into the files of those that go on."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _gpus_of(rank: int, settings: Settings) -> list[str]:
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = given.split(",") if given else [str(i) for i in range(torch.cuda.device_count())]
    each = settings.tensor_parallel
    if settings.ranks * each > len(visible):
        raise ValueError(f"--ranks {settings.ranks} x --tensor_parallel {each} needs more GPUs than {len(visible)}")
    return visible[rank * each : (rank + 1) * each]


def _require_well(children: list[Child]) -> None:
    for rank, child in enumerate(children):
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
    given: dict[str, Any] = json.loads(sys.argv[1])
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
    rank = int(sys.argv[2])
    settings = Settings(**values)
    plan = make_plan(settings)
    folder = EvaluationFolder(Path(settings.out) / settings.folder_name)
    try:
        with interrupts_noted() as check:
            device = choose_device(settings.device)
            generate(settings, plan, folder, prepare(settings, plan), device, check, rank)
    except Interrupted:
        return EXIT_INTERRUPTED
    except (ValueError, OSError) as error:
        print(f"fastgrpo: rank {rank}: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
