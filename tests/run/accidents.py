"""Runs of several processes in which some of them come to harm."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from fastgrpo.json_lines import JsonLines
from tests.run.test_run import results, weights_of

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "tests" / "run" / "accident_recipe.py"
LIMIT_S = 400.0  # nothing takes so long unless it hangs
OF_ACCIDENTS = ("engine_restarts", "responses_redrawn")

Accident = tuple[int, str, str, str]  # step, phase, signal, whom


class Launch:
    """``fastgrpo train`` on ranks that train and ranks that sample; knows every process that it ever had."""

    def __init__(
        self,
        runs: Path,
        *arguments: str,
        trainers: int = 1,
        samplers: int = 0,
        accidents: Sequence[Accident] = (),
    ) -> None:
        self.folder = runs / "tiny"
        self.log = runs / f"printed_{time.monotonic_ns()}"
        command = [sys.executable, "-m", "fastgrpo", "train", "--ranks", str(trainers + samplers), str(RECIPE)]
        command += ["--rollout.gpus", str(samplers), "--runs_dir", str(runs), "--data.held_out", "", *arguments]
        told = {"ACCIDENTS": json.dumps(accidents), "NUM_TRAINERS": str(trainers), "OMP_NUM_THREADS": "1"}
        with self.log.open("wb") as log:
            self.launcher = subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, **told}, stdout=log, stderr=subprocess.STDOUT
            )
        self.processes: set[psutil.Process] = set()

    def wait(self, until: Callable[[], bool] = lambda: False) -> int | None:
        """The exit code, or None as soon as `until` is so. Raises AssertionError if neither comes."""
        launcher, end = psutil.Process(self.launcher.pid), time.monotonic() + LIMIT_S
        while self.launcher.poll() is None and not until():
            with contextlib.suppress(psutil.NoSuchProcess):
                self.processes |= set(launcher.children(recursive=True))
            if time.monotonic() > end:
                self.kill()
                raise AssertionError(f"no end after {LIMIT_S} s:\n{self.printed}")
            time.sleep(0.05)
        return self.launcher.poll()

    def kill(self) -> None:
        for process in (psutil.Process(self.launcher.pid), *self.processes):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.launcher.wait()

    @property
    def printed(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def last_step(self) -> int:
        return max((r["step"] for r in JsonLines(self.folder / "metrics.jsonl").read()), default=0)

    def assert_nobody_is_left(self) -> None:
        assert self.processes
        _, alive = psutil.wait_procs(self.processes, timeout=20)
        assert alive == [], alive


def run(runs: Path, *arguments: str, **options: Any) -> Launch:
    """To its end, which must be a good one."""
    launch = Launch(runs, *arguments, **options)
    code = launch.wait()
    assert code == 0, launch.printed
    launch.assert_nobody_is_left()
    return launch


def with_base(runs: Path, tiny_base: Path) -> Path:
    runs.mkdir(parents=True, exist_ok=True)
    shutil.copytree(tiny_base, runs / "tiny" / "base")
    return runs


def records(folder: Path) -> list[dict[str, Any]]:
    return [r for r in JsonLines(folder / "metrics.jsonl").read() if r["step"] > 0]


def watched(folder: Path) -> list[dict[str, Any]]:
    """What each step trained on; a step that was done again after a kill counts as it was the last time."""
    steps = {line["step"]: line for line in JsonLines(folder / "watched.jsonl").read()}
    return [steps[number] for number in sorted(steps)]


def figures(folder: Path) -> list[dict[str, Any]]:
    """Metrics without clocks and without what tells of accidents."""
    return [{k: v for k, v in r.items() if k not in OF_ACCIDENTS} for r in results(folder)]


def assert_same(folder: Path, other: Path, step: int) -> None:
    """Bit for bit, up to this step."""
    assert figures(folder) == [r for r in figures(other) if r["step"] <= step]
    expected = weights_of(other, step)
    for name, weight in weights_of(folder, step).items():
        assert torch.equal(weight, expected[name]), name


def assert_every_prompt_counts_once(folder: Path) -> None:
    used = [p for line in watched(folder) for p in (*line["kept"], *line["dropped"])]
    assert len(used) == len(set(used))
    started = sum(r["prompts_started"] - r["prompts_put_back"] for r in records(folder))
    assert started == len(used) + records(folder)[-1].get("prompts_under_way", 0)
