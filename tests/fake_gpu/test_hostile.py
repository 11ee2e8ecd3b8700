"""The runner on a device that fails, is full, hangs, or whose machine is taken away: what was measured is there."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench.gpu.record import Record
from tests.fake_gpu.environment import ROOT, environment


def command(folder: Path, names: Sequence[str], budget_s: float = 300) -> list[str]:
    return [
        sys.executable, "-m", "bench", "gpu", *names, "--folder", str(folder), "--out", str(folder / "out"),
        "--processes", "2", "--budget_s", str(budget_s), "--carried", str(folder / "none"),
    ]  # fmt: skip


def call(folder: Path, *names: str, **faults: str) -> subprocess.CompletedProcess[str]:
    variables = environment("h100") | {f"FAKE_GPU_{name.upper()}": value for name, value in faults.items()}
    return subprocess.run(command(folder, names), cwd=ROOT, env=variables, capture_output=True, text=True, timeout=400)


def states(folder: Path) -> dict[str, str]:
    return {name: answer.state for name, answer in Record(folder, None).answers.items()}


def results(folder: Path) -> set[str]:
    return {p.stem for p in folder.glob("results/*/*.json")}


@pytest.mark.parametrize(
    ("faults", "reason"),
    [({"fail": "_linear_tiles"}, "Triton Error"), ({"gib": "6"}, "out of memory")],
    ids=["a launch fails", "memory ends"],
)
def test_what_comes_before_and_after_a_failure_is_measured(tmp_path, faults, reason):
    done = call(tmp_path, "machine", "grpo_loss: ours", "linear_grpo: ours", "group_advantages: ours", **faults)
    assert done.returncode == 1, done.stdout + done.stderr
    assert states(tmp_path) == {
        "machine": "passed",
        "linear_grpo: ours": "failed",
        "grpo_loss: ours": "passed",
        "group_advantages: ours": "passed",
    }
    assert {"grpo_loss", "group_advantages"} <= results(tmp_path)
    assert "failed: " in done.stdout and reason in done.stdout


def test_a_kernel_that_hangs_costs_its_own_step(tmp_path):
    done = call(tmp_path, "row_pass: ours", "attention: varlen", hang="_row_gradient")
    assert done.returncode == 1
    assert states(tmp_path) == {"row_pass: ours": "failed", "attention: varlen": "passed"}
    assert "row_pass: ours (it hung, and was killed," in done.stdout


def test_a_call_that_is_killed_goes_on_in_the_next(tmp_path):
    names = ("machine", "linear_grpo: ours", "tokens_per_s: prime_rl update", "linear_logprobs: ours")
    running = subprocess.Popen(command(tmp_path, names), cwd=ROOT, env=environment("h100"), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while "linear_grpo: ours" not in states(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.2)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    before = states(tmp_path)
    assert before["linear_grpo: ours"] == "passed" and "linear_logprobs: ours" not in before
    assert "linear_grpo" in results(tmp_path)
    done = call(tmp_path, *names)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(states(tmp_path).values()) == {"passed"} and len(states(tmp_path)) == len(names)
    assert "machine" not in done.stdout.split("results")[0]  # what has an answer is not asked again


def test_without_the_time_for_it_a_step_is_named_and_not_begun(tmp_path):
    done = subprocess.run(
        command(tmp_path, ("machine", "real_shape"), budget_s=26), cwd=ROOT, env=environment("h100"),
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert states(tmp_path)["machine"] == "passed"
    assert "not reached: real_shape" in done.stdout or "failed: real_shape (it hung" in done.stdout
