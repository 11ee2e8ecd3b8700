"""The quickstart as a newcomer runs it: it learns, and its report shows it."""

import json
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


@pytest.mark.slow
def test_the_quickstart_learns_and_its_report_shows_it(tmp_path, show):  # noqa: F811
    """With rollouts two steps ahead it learns in tests/peers/test_quickstart_vllm.py."""
    command = [sys.executable, "-m", "fastgrpo", "train", "--ranks", "2", "quickstart", "--runs_dir", str(tmp_path)]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert printed.returncode == 0, printed.stderr
    summary = json.loads((tmp_path / "quickstart" / "summary.json").read_text())
    assert summary["accuracy_before"] <= 0.40 and summary["greedy_before"] <= 0.50
    assert summary["accuracy_after"] >= 0.85 and summary["greedy_after"] >= 0.85
    assert "step 40/40" in printed.stdout and "Traceback" not in printed.stderr
    page = show(tmp_path / "quickstart" / "report.html")
    assert page.console == []
    assert page.num_drawn == 27 and len(page.rows) == 40
