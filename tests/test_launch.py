"""The command and its launcher."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tests.conftest import TINY

ROOT = Path(__file__).parents[1]


def fastgrpo(*arguments: str, **options) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "fastgrpo", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, **options)


def test_recipes_are_listed_with_one_line_each():
    done = fastgrpo("recipes")
    assert done.returncode == 0
    assert "quickstart" in done.stdout and "justrl_deepseek_1_5b" in done.stdout


def test_an_unknown_command_is_refused_with_the_known_ones():
    done = fastgrpo("trian")
    assert done.returncode == 2 and "no command 'trian'" in done.stdout and "report RUN" in done.stdout


def test_a_refusal_on_two_ranks_is_said_once_and_exits_with_its_code():
    done = fastgrpo("train", "--ranks", "2", str(TINY), "--data.prompts_per_step", "7")
    assert done.returncode == 2
    assert done.stderr.count("cannot be split into") == 1


def test_justrl_constants_are_the_defaults():
    done = fastgrpo("train", "--ranks", "1", "justrl_deepseek_1_5b", "--dry_run")
    assert done.returncode == 0
    for line in (
        "--objective.clip_low 0.2", "--objective.clip_high 0.28", "--objective.dual_clip 10.0",
        "--optimizer.learning_rate 1e-06", "--optimizer.warmup_steps 10", "--optimizer.weight_decay 0.1",
        "--optimizer.max_grad_norm 1.0", "--optimizer.updates_per_step 4", "--rollout.temperature 1.0",
        "--rollout.max_response_tokens 15360", "--data.max_prompt_tokens 1024", "--steps 4380",
        "responses per step: 256 prompts x 8 = 2048", "each on 64 prompts x 8 = 512 responses",
    ):  # fmt: skip
        assert line in done.stdout, line


def test_ranks_do_not_outlive_a_killed_launcher(tmp_path):
    command = [sys.executable, "-m", "fastgrpo", "train", "--ranks", "2", str(TINY), "--runs_dir", str(tmp_path)]
    launcher = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ranks: list[psutil.Process] = []
    while len(ranks) < 2:
        ranks = psutil.Process(launcher.pid).children()
        time.sleep(0.05)
    os.kill(launcher.pid, signal.SIGKILL)
    launcher.wait()
    _, alive = psutil.wait_procs(ranks, timeout=10)
    assert alive == []
