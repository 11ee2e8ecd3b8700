"""What plain JustRL does not pay for, and what a large group does not change."""

import json
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from tests.recipes.shrunk import run_shrunk

ROOT = Path(__file__).parents[2]
TECHNIQUES = {  # file: functions in it, or all of them
    "fastgrpo/algorithm/shaping.py": None,
    "fastgrpo/policy/reference.py": None,
    "fastgrpo/trainer.py": {"set_config", "reset_reference"},
    "fastgrpo/run/schedule.py": {"_enter"},
    "fastgrpo/policy/learner.py": {"with_chosen_tokens", "clear_optimizer"},
    "fastgrpo/policy/aggregation.py": {"verl_denominator"},
    "fastgrpo/policy/own_loss.py": None,
    "fastgrpo/policy/token_choice.py": None,
    "fastgrpo/policy/token_masks.py": None,
    "fastgrpo/algorithm/advantages.py": {"batch_normalised", "batch_whitened", "_over_tokens"},
}


def test_the_functions_of_the_techniques_are_there():
    for file, functions in TECHNIQUES.items():
        assert all(f"def {name}(" in (ROOT / file).read_text() for name in functions or ())


def techniques_called(name: str, runs: Path) -> set[str]:
    """Functions of the techniques that a recipe in small goes through once its modules are loaded."""
    run_shrunk(name, runs / "loaded")
    called = set()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        file, function = frame.f_code.co_filename, frame.f_code.co_name
        for place, functions in TECHNIQUES.items():
            if file.endswith(place) and (functions is None or function in functions):
                called.add(f"{place}:{function}")

    sys.setprofile(note)
    try:
        run_shrunk(name, runs / "seen", "--optimizer.learning_rate", "1e-3")
    finally:
        sys.setprofile(None)
    asked_by_shrink = "fastgrpo/algorithm/shaping.py:scaled"
    return {c for c in called if "<" not in c and c != asked_by_shrink}


def test_plain_justrl_goes_through_no_function_of_a_technique(tmp_path):
    assert techniques_called("justrl_deepseek_1_5b", tmp_path) == set()


@pytest.mark.slow
def test_a_recipe_that_names_techniques_goes_through_them(tmp_path):
    called = techniques_called("prorl_v2_1_5b", tmp_path)
    assert {
        "fastgrpo/policy/reference.py:reset",
        "fastgrpo/algorithm/advantages.py:batch_normalised",
        "fastgrpo/run/schedule.py:_enter",
    } <= called


@pytest.mark.slow
def test_a_large_group_has_one_mean_however_it_is_packed_and_on_however_many_ranks(tmp_path):
    """BroRL's groups are larger than a micro-batch, and their problems are dealt to every rank's engine."""
    large = ["--rollout.group_size", "48", "--steps", "1"]
    whole = run_shrunk("brorl_1_5b", tmp_path / "whole", *large, "--optimizer.tokens_per_microbatch", "200000")[0]
    parts = run_shrunk("brorl_1_5b", tmp_path / "parts", *large, "--optimizer.tokens_per_microbatch", "900")[0]
    command = [sys.executable, "-m", "fastgrpo", "train", "--ranks", "2", "brorl_1_5b", "--shrink", *large]
    done = subprocess.run(
        [*command, "--runs_dir", str(tmp_path / "ranks")], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    ranks = json.loads((tmp_path / "ranks" / "brorl_1_5b_shrunk" / "metrics.jsonl").read_text().splitlines()[-1])
    for other in (parts, ranks):
        assert other["reward"] == whole["reward"] and other["reward_std"] == whole["reward_std"]
        assert other["total_tokens"] == whole["total_tokens"]
        assert other["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-4)
