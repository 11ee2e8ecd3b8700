"""The quickstart as a newcomer runs it: it learns, and its report shows it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fastgrpo_recipes import quickstart

from tests.report.test_report_in_browser import show  # noqa: F401

ROOT = Path(__file__).parents[1]


def test_warm_up_training_and_held_out_problems_share_nothing():
    warmup, train, held_out = map(set, quickstart.split_problems())
    assert not warmup & train and not warmup & held_out and not train & held_out
    assert len(held_out) >= 256 and len(warmup) + len(train) + len(held_out) == 8100


def test_worked_out_demonstrations_are_right_and_guesses_mostly_wrong():
    for problem in quickstart.split_problems()[0][:500]:
        assert quickstart.reward(quickstart.worked_out(problem), str(sum(problem)))
    pairs = quickstart.demonstrations(quickstart.split_problems()[0])
    guesses = [quickstart.reward(r, str(eval(q.removesuffix("=?")))) for q, r in pairs if "=" not in r]
    assert sum(guesses) / len(guesses) < 0.12


def train(runs_dir: Path, *settings: str) -> "tuple[subprocess.CompletedProcess[str], dict]":
    """The quickstart on two ranks as a newcomer starts it: what it printed, and its summary."""
    command = [sys.executable, "-m", "fastgrpo", "train", "--ranks", "2", "quickstart", "--runs_dir", str(runs_dir)]
    printed = subprocess.run([*command, *settings], cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert printed.returncode == 0, printed.stderr
    return printed, json.loads((runs_dir / "quickstart" / "summary.json").read_text())


@pytest.mark.slow
def test_the_quickstart_learns_its_report_shows_it_and_it_learns_from_rollouts_a_step_ahead(tmp_path, show):  # noqa: F811
    """Two steps ahead it does so with vLLM, in tests/peers/test_quickstart_vllm.py."""
    printed, summary = train(tmp_path)
    assert summary["accuracy_before"] <= 0.40 and summary["greedy_before"] <= 0.50
    assert summary["accuracy_after"] >= 0.85 and summary["greedy_after"] >= 0.85
    assert "step 40/40" in printed.stdout and "Traceback" not in printed.stderr
    page = show(tmp_path / "quickstart" / "report.html")
    assert page.console == []
    assert page.num_drawn == 27 and len(page.rows) == 40

    shutil.copytree(tmp_path / "quickstart" / "base", tmp_path / "ahead" / "quickstart" / "base")
    ahead = ("--rollout.gpus", "1", "--rollout.max_staleness", "1", "--objective.correction", "truncate")
    _, summary = train(tmp_path / "ahead", *ahead)
    assert summary["accuracy_before"] <= 0.40
    assert summary["accuracy_after"] >= 0.85 and summary["greedy_after"] >= 0.85
