"""Runs that are killed, signalled, unheard and visited by strangers, and those that go on elsewhere."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import TINY
from tests.run.test_run import results

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def start(runs: Path, *arguments: str, num_ranks: int = 2) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "fastgrpo", "train", "--ranks", str(num_ranks), str(TINY), "--runs_dir", str(runs)]
    return subprocess.Popen([*command, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL)


def test_accidents_of_every_kind_change_no_bit_and_leave_nothing():
    """The campaign in small; by hand: ``python -m tests.campaign --kills 200 --signals --streams --strangers``."""
    small = ["--kills", "3", "--signals", "SIGHUP", "--moments", "step", "report", "--streams", "--strangers"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.campaign", *small], cwd=ROOT, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kills" in done.stdout and "2 signals" in done.stdout and "4 streams" in done.stdout


def test_a_run_continues_on_another_number_of_ranks(tmp_path, tiny_base):
    """Sums over ranks round differently, so weights agree to rounding, not to the bit."""
    for runs in (tmp_path / "undisturbed", tmp_path):
        shutil.copytree(tiny_base, runs / "tiny" / "base")
    assert start(tmp_path / "undisturbed", "--steps", "4").wait(timeout=180) == 0
    assert start(tmp_path, "--steps", "2").wait(timeout=180) == 0
    assert start(tmp_path, "--resume", "--steps", "4", num_ranks=1).wait(timeout=180) == 0
    assert [r["step"] for r in results(tmp_path / "tiny")] == [0, 1, 2, 3, 4]
    expected = results(tmp_path / "undisturbed" / "tiny")
    for ours, theirs in zip(results(tmp_path / "tiny")[1:], expected[1:], strict=True):
        assert ours["reward"] == pytest.approx(theirs["reward"], abs=1e-6)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
