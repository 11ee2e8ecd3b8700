"""A run whose first steps have nothing to learn says why, and ends rather than going on for days."""

import json
import re
from dataclasses import replace

import pytest

from fastgrpo.config import Config
from fastgrpo.json_lines import JsonLines
from fastgrpo.run.barren import BarrenStep, count_barren, is_barren, require_signal
from fastgrpo.run.checkpoint import integrity
from fastgrpo.train import main
from fastgrpo.trainer import Progress, TrainingError
from tests.conftest import TINY

STOPPED = 1
QUICK = ("--data.held_out", "", "--rollout.group_size", "4", "--rollout.max_response_tokens", "2")
NOTHING_RIGHT = "def reward(response, answer):\n    return False\n"
KEPT_EQUAL = {"groups_kept": 8, "zero_advantage_frac": 1.0}


@pytest.fixture
def train_with(train, tmp_path):
    """Trains the tiny recipe with this code in the place of its reward; returns the exit code."""

    def run(code: str, *arguments: str) -> int:
        recipe = tmp_path / "barren.py"
        recipe.write_text(f"{TINY.read_text()}\n{code}\n")
        return main([str(recipe), "--runs_dir", str(train.folder.parent), *QUICK, *arguments])

    run.folder, run.recipe = train.folder, tmp_path / "barren.py"
    return run


def steps_of(folder):
    return [r["step"] for r in JsonLines(folder / "metrics.jsonl").read()]


def test_a_run_without_signal_ends_after_so_many_steps_with_the_cause_and_the_mend(train_with, capfd):
    assert train_with("from fastgrpo.rewards import strict_boxed as reward", "--max_barren_steps", "2") == STOPPED
    assert steps_of(train_with.folder) == [1, 2]
    out, err = capfd.readouterr()
    warned = r"equal: nothing to learn: \d+ of 32 responses are cut at 2 tokens; 0 of 32 responses have a box, and"
    assert len(re.findall(warned, out)) == 2
    for words in ("in none of the first 2 steps", "0 of 32 responses have a box", "`reward = simplerl_mix`"):
        assert words in err, words
    assert "responses are cut at 2 tokens" in err and "--rollout.max_response_tokens 4" in err
    assert f"`fastgrpo inspect {train_with.recipe}`" in err


def test_a_run_is_let_go_on_where_the_setting_says_so_or_its_last_step_is_reached(train_with):
    assert train_with(NOTHING_RIGHT, "--max_barren_steps", "0", "--steps", "3") == 0
    assert train_with(NOTHING_RIGHT, "--max_barren_steps", "3", "--steps", "3", "--overwrite") == 0


def test_one_step_with_signal_ends_the_count(train_with):
    first = "calls = []\ndef reward(response, answer):\n    calls.append(1)\n    return len(calls) in (7, 40)\n"
    assert train_with(first, "--max_barren_steps", "2", "--steps", "4") == 0
    assert steps_of(train_with.folder) == [1, 2, 3, 4]


def test_the_count_goes_on_in_a_resumed_run(train_with, capfd):
    assert train_with(NOTHING_RIGHT, "--max_barren_steps", "3", "--steps", "2") == 0
    assert train_with(NOTHING_RIGHT, "--max_barren_steps", "3", "--steps", "9", "--resume") == STOPPED
    assert steps_of(train_with.folder) == [1, 2, 3]
    assert "in none of the first 3 steps" in capfd.readouterr().err


def test_a_checkpoint_that_knows_no_count_can_be_gone_on_from(train_with):
    assert train_with(NOTHING_RIGHT, "--steps", "2") == 0
    path = train_with.folder / "checkpoints" / "step_000002"
    state = json.loads((path / integrity.STATE).read_text())
    assert state["progress"].pop("barren_steps") == 2
    integrity.write_state(path, state["progress"], state["run"])
    assert integrity.read_state(path)[0].barren_steps == 0
    assert train_with(NOTHING_RIGHT, "--max_barren_steps", "3", "--steps", "4", "--resume") == 0


@pytest.mark.parametrize("setting", ["--objective.kl_coef", "--objective.entropy_coef"])
def test_a_run_whose_loss_has_other_terms_is_not_ended(train_with, setting, capfd):
    assert train_with(NOTHING_RIGHT, "--max_barren_steps", "1", "--steps", "2", setting, "0.01") == 0
    assert "nothing to learn" in capfd.readouterr().out


def test_a_run_that_drops_all_its_groups_is_ended(train_with, capfd):
    arguments = ("--rollout.zero_signal_groups", "drop", "--max_barren_steps", "1")
    assert train_with("def reward(response, answer):\n    return 0.25\n", *arguments) == STOPPED
    err = capfd.readouterr().err
    assert "in none of the first 1 steps" in err and "responses are cut at 2 tokens" in err


def test_different_numbers_are_signal_whatever_counts_as_right(train_with):
    different = "def reward(response, answer):\n    return float(hash(response) % 97) / 1000\n"
    assert train_with(different, "--max_barren_steps", "1", "--steps", "2") == 0


def test_a_step_is_barren_only_where_it_is_certain():
    assert is_barren(KEPT_EQUAL, True) and is_barren({"groups_kept": 0, "zero_advantage_frac": float("nan")}, False)
    assert not is_barren(KEPT_EQUAL, False)
    assert not is_barren(KEPT_EQUAL | {"zero_advantage_frac": 0.875}, True)


def test_barren_steps_count_from_the_first_one_without_a_gap():
    progress = Progress()
    for step, barren in enumerate([True, True, False, True, True], start=1):
        progress.step = step
        count_barren(progress, barren)
    assert progress.barren_steps == 2
    require_signal(BarrenStep(None, []), progress, replace(Config(), max_barren_steps=2), "mine")
    progress.step = 2
    with pytest.raises(TrainingError, match=r"in none of the first 2 steps .*`fastgrpo inspect mine`"):
        require_signal(BarrenStep(None, []), progress, replace(Config(), max_barren_steps=2), "mine")
