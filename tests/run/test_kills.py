"""A run that is killed again and again ends where one that never was ends, bit for bit."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fastgrpo.json_lines import JsonLines
from tests.conftest import TINY
from tests.run.test_run import results, weights_of

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
STEPS = 20
SETTINGS = ["--steps", str(STEPS), "--checkpoint.every_steps", "3", "--evaluation.every_steps", "5"]


def start(runs: Path, *arguments: str, num_ranks: int = 2) -> "subprocess.Popen[bytes]":
    """In a process group of its own, so that one signal reaches launcher and ranks alike."""
    command = [sys.executable, "-m", "fastgrpo", "train", "--ranks", str(num_ranks), str(TINY), "--runs_dir", str(runs)]
    return subprocess.Popen(
        [*command, *SETTINGS, *arguments], cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL
    )


def steps_done(folder: Path) -> int:
    return max((r["step"] for r in JsonLines(folder / "metrics.jsonl").read()), default=0)


def kill_at(child: "subprocess.Popen[bytes]", reached: Callable[[], bool]) -> bool:
    """SIGKILL to all of the run as soon as `reached()`; False if the run ended before."""
    while child.poll() is None:
        if reached():
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            return True
        time.sleep(0.0005)
    return False


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, tiny_base):
    runs = tmp_path_factory.mktemp("undisturbed")
    shutil.copytree(tiny_base, runs / "tiny" / "base")
    assert start(runs).wait(timeout=180) == 0
    return runs / "tiny"


def assert_same(folder: Path, other: Path) -> None:
    assert results(folder) == results(other)
    expected = weights_of(other, STEPS)
    for name, weight in weights_of(folder, STEPS).items():
        assert torch.equal(weight, expected[name]), name


def test_five_kills_change_nothing(tmp_path, tiny_base, undisturbed):
    """At random moments of random steps, twice while a checkpoint is being written."""
    folder, chance = tmp_path / "tiny", random.Random(0)
    shutil.copytree(tiny_base, folder / "base")

    def amid_a_step() -> Callable[[], bool]:
        goal, delay = steps_done(folder) + chance.randint(1, 3), chance.uniform(0, 0.2)
        return lambda: steps_done(folder) >= goal and not time.sleep(delay)

    def amid_a_write() -> Callable[[], bool]:
        began = time.time()

        def is_writing() -> bool:
            partials = (folder / "checkpoints").glob(".step_*")
            return any(p.stat().st_mtime > began and not (p / "state.json").exists() for p in partials)

        return is_writing

    for moment in (amid_a_step, amid_a_write, amid_a_step, amid_a_write, amid_a_step):
        assert kill_at(start(tmp_path, "--resume"), moment()), "the run ended before it was killed"
    assert start(tmp_path, "--resume").wait(timeout=180) == 0
    assert_same(folder, undisturbed)


def test_a_run_continues_on_another_number_of_ranks(tmp_path, tiny_base, undisturbed):
    """Sums over ranks round differently, so weights agree to rounding, not to the bit."""
    folder = tmp_path / "tiny"
    shutil.copytree(tiny_base, folder / "base")
    assert start(tmp_path, "--steps", "2").wait(timeout=180) == 0
    assert start(tmp_path, "--resume", "--steps", "4", num_ranks=1).wait(timeout=180) == 0
    assert [r["step"] for r in results(folder)] == [0, 1, 2, 3, 4]
    for ours, expected in zip(results(folder)[1:], results(undisturbed)[1:5], strict=True):
        assert ours["reward"] == pytest.approx(expected["reward"], abs=1e-6)
        assert ours["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3)


def test_sigterm_to_the_launcher_saves_and_gives_the_interrupted_code(tmp_path, tiny_base):
    folder = tmp_path / "tiny"
    shutil.copytree(tiny_base, folder / "base")
    child = start(tmp_path)
    while steps_done(folder) < 1:
        time.sleep(0.01)
    child.terminate()
    assert child.wait(timeout=60) == 75
    assert steps_done(folder) < STEPS
    assert (folder / "checkpoints" / f"step_{steps_done(folder):06d}" / "state.json").exists()
