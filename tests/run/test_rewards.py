"""Rewards of a recipe's own in whole runs: what they are worth, what is counted, and what stops a run."""

import json
import re
from pathlib import Path

import pytest

from fastgrpo.json_lines import JsonLines
from fastgrpo.train import command, main
from tests.conftest import TINY

DOC = Path(__file__).parents[2] / "docs" / "rewards.md"
STOPPED, REFUSED = 1, 2
ONE_STEP = ("--steps", "1", "--data.held_out", "", "--rollout.group_size", "4")


@pytest.fixture
def train_with(train, tmp_path):
    """Trains the tiny recipe with another reward; returns the exit code."""

    def run(reward: str, *arguments: str) -> int:
        recipe = tmp_path / "of_ones_own.py"
        recipe.write_text(f"{TINY.read_text()}\n{reward}\n")
        return main([str(recipe), "--runs_dir", str(train.folder.parent), *arguments])

    run.folder = train.folder
    return run


def records(folder: Path) -> list[dict]:
    return JsonLines(folder / "metrics.jsonl").read()


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        ("reward = lambda r, a: 1/0", "ZeroDivisionError: division by zero (RECIPE, line LAST)"),
        ("def reward(r, a):\n    import no_such_module", "No module named 'no_such_module' (RECIPE, line LAST)"),
        ("reward = lambda r, a: 'right'", "TypeError: a reward must return a bool, a number, None"),
        ("reward = lambda r, a, level: 1.0", "asks for 'level'"),
        ("reward = 'no_such_module:reward'", "No module named 'no_such_module'"),
        ("def reward(r, a, row):\n    return row['price']", "KeyError: 'price' (RECIPE, line LAST)"),
    ],
)
def test_a_reward_that_cannot_work_is_refused_before_weights_load(train_with, monkeypatch, capfd, reward, words):
    monkeypatch.setattr("fastgrpo.run.setup.load_policy", None)  # a run that gets so far fails otherwise
    assert train_with(reward) == REFUSED
    recipe = train_with.folder.parents[1] / "of_ones_own.py"
    last = len(recipe.read_text().splitlines())
    assert words.replace("RECIPE", str(recipe)).replace("LAST", str(last)) in capfd.readouterr().err


def test_a_reward_in_numbers_from_a_column_of_the_row_with_named_parts(train_with):
    reward = """
def reward(response: str, answer: str, row: dict, prompt: str):
    assert row["reward_model"]["ground_truth"] == answer and row["prompt"][0]["content"] in prompt
    length = len(response)
    if length % 5 == 0:
        return None
    if length % 5 == 1:
        return float("nan")
    return {"length": (length, 0.01), "correct": response == answer, "odd": (length % 2, 0.0)}
"""
    settings = ("--steps", "2", "--reward.wrong", "-3", "--evaluation.max_problems", "2")
    assert train_with(reward, *settings) == 0
    before, *steps = records(train_with.folder)
    assert before["held_out_accuracy"] == 0 and before["held_out_score"] > 0
    for step in steps:
        assert step["reward"] == pytest.approx(0.01 * step["reward/length"], rel=1e-5) and step["reward_std"] > 0
        assert step["reward/correct"] == step["accuracy"] == 0 and 0 <= step["reward/odd"] <= 1
        assert step["responses_without_reward"] > 0 and step["rewards_not_finite"] > 0
        assert step["verifier_failures"] == 0 and "last_verifier_error" not in step
    rollouts = [json.loads(line) for line in (train_with.folder / "rollouts.jsonl").read_text().splitlines()]
    with_parts = [r for r in rollouts if "parts" in r]
    assert with_parts and not any(r["correct"] for r in rollouts)
    assert all(r["reward"] == pytest.approx(0.01 * r["parts"]["length"]) for r in with_parts)


def test_a_number_counts_as_right_from_reward_correct_on(train_with):
    reward = "def reward(response, answer):\n    return min(len(response), 8) / 8\n"
    assert train_with(reward, *ONE_STEP, "--reward.correct", "0.5") == 0
    assert records(train_with.folder)[-1]["accuracy"] > 0
    assert train_with(reward, *ONE_STEP, "--reward.correct", "1.5", "--overwrite") == 0
    assert records(train_with.folder)[-1]["accuracy"] == 0


def test_a_reward_that_fails_on_every_response_of_a_step_stops_the_run(train_with, capfd):
    reward = "def reward(r, a):\n    if 'Six times' not in r: raise OSError('no judge')\n    return True"
    assert train_with(reward, *ONE_STEP) == STOPPED
    assert "the reward failed on all 32 responses of a step: OSError: no judge" in capfd.readouterr().err
    assert train_with(reward, "--steps", "1", "--evaluation.max_problems", "2", "--overwrite") == STOPPED
    assert "responses of an evaluation: OSError: no judge" in capfd.readouterr().err


def test_a_step_in_which_no_response_has_a_reward_is_warned_of_with_the_reason(train_with, capfd):
    reward = "def reward(r, a):\n    return None if len(r) % 2 else float('nan')"
    assert train_with(reward, *ONE_STEP) == 0
    (step,) = records(train_with.folder)
    nan, none = step["rewards_not_finite"], step["responses_without_reward"]
    assert step["reward"] is None and nan + none == 32
    said = capfd.readouterr().out
    assert f"no response has a reward, so nothing was trained: of 32 {nan} are NaN or infinite and {none} None" in said
    assert "all rewards are equal" not in said


def test_a_reward_that_fails_now_and_then_is_warned_of_with_its_last_error(train_with, capfd):
    reward = (
        "def reward(r, a):\n    if len(r) < 40 and len(r) % 3 == 0: raise OSError('no judge')\n    return float(len(r))"
    )
    assert train_with(reward, *ONE_STEP) == 0
    (step,) = records(train_with.folder)
    assert 0 < step["verifier_failures"] < 32 and step["last_verifier_error"].startswith("OSError: no judge (")
    said = capfd.readouterr().out
    assert f"the reward failed on {step['verifier_failures']} of 32 responses" in said and "no judge" in said


def test_a_list_of_another_length_stops_the_run_with_both(train_with, capfd):
    reward = """
from fastgrpo.rewards import from_trl
reward = from_trl(lambda prompts, completions, **columns: [1.0] * (1 if len(completions) == 1 else 3))
"""
    assert train_with(reward, *ONE_STEP) == STOPPED
    assert "got 4 completions and returned a list of 3 rewards" in capfd.readouterr().err


def test_what_a_recipe_says_of_rewards_holds_in_small_and_in_a_dry_run(train_with, capfd):
    reward = "async def reward(response, answer, group):\n    return float(len({response, *group}))\n"
    assert train_with(reward, "--dry_run") == 0
    assert "--reward.concurrency 32" in capfd.readouterr().out
    assert train_with(reward, *ONE_STEP) == 0
    assert 1 <= records(train_with.folder)[-1]["reward"] <= 4
    assert train_with(reward, "--shrink") == 0
    small = records(train_with.folder.with_name("tiny_shrunk"))
    assert len(small) == 3 and all(1 <= step["reward"] <= 8 and step["verifier_failures"] == 0 for step in small)


@pytest.mark.parametrize("by_name", [False, True])
def test_a_data_set_of_tests_without_answers_is_for_rewards_that_ask_for_its_rows(
    train_with, capfd, monkeypatch, by_name
):
    path = train_with.folder / "base" / "train.jsonl"
    path.write_text("".join(json.dumps({"problem": f"Print {n}", "tests": {"n": n}}) + "\n" for n in range(20)))
    assert train_with("reward = lambda response, answer: True", *ONE_STEP) == REFUSED
    assert "for a reward that asks for `row` a problem alone" in capfd.readouterr().err
    reward = "def reward(response, answer, row):\n    return {'tests': row['tests']['n'], 'none': float(not answer)}\n"
    if by_name:
        module = train_with.folder.parents[1] / "rewards_of_tests.py"
        module.write_text(reward)
        monkeypatch.syspath_prepend(str(module.parent))
        reward = "reward = 'rewards_of_tests:reward'"
    assert train_with(reward, *ONE_STEP) == 0
    (step,) = records(train_with.folder)
    assert step["reward/none"] == 1 and 0 < step["reward/tests"] < 20 and step["verifier_failures"] == 0
    assert "20 problems, 20 of them without an answer" in capfd.readouterr().out


def documented(words: str) -> str:
    """The example of the page in which these words are."""
    (found,) = [code for code in re.findall(r"```python\n(.*?)```", DOC.read_text(), re.DOTALL) if words in code]
    return found


def test_the_documented_reward_of_a_rows_columns_runs(train_with):
    path = train_with.folder / "base" / "train.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    answers = [float(row["reward_model"]["ground_truth"]) for row in rows]
    rows = [row | {"value": answer, "tolerance": 50.0} for row, answer in zip(rows, answers, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert train_with(documented("tolerance"), *ONE_STEP, "--rollout.max_response_tokens", "12") == 0
    (step,) = records(train_with.folder)
    assert step["reward/correct"] == 0 and step["responses_without_reward"] > 0 and step["verifier_failures"] == 0
    namespace: dict = {}
    exec(documented("tolerance"), namespace)
    row = {"value": 10.0, "tolerance": 4.0}
    found = [namespace["reward"](f"\\boxed{{{n}}}", "10", row, "stop")["close"] for n in ("10", "11", "20")]
    assert found == [(1.0, 0.5), (0.75, 0.5), (0.0, 0.5)]


def test_the_documented_judge_over_http_runs(train_with, server):
    reward = documented("AsyncInferenceClient").replace("http://judge:8000", server.url("").rstrip("/"))
    assert train_with(reward, *ONE_STEP) == 0
    (step,) = records(train_with.folder)
    assert 0 < step["accuracy"] < 1 and step["verifier_failures"] == 0
    assert len(server.asked) == 33  # one to try it
    assert all("Is the solution right?" in body["messages"][0]["content"] for _, body, _ in server.asked)


def test_the_documented_sum_of_several_rewards_runs(train_with):
    assert train_with(documented("math_verify, weighted"), *ONE_STEP) == 0
    (step,) = records(train_with.folder)
    assert step["reward/correct"] == step["accuracy"] and 0.9 < step["reward/short"] < 1


def test_the_documented_function_for_trl_runs(train_with):
    path = train_with.folder / "base" / "train.jsonl"
    path.write_text("".join('{"ground_truth": "", ' + line[1:] + "\n" for line in path.read_text().splitlines()))
    assert train_with(documented("distinct("), *ONE_STEP) == 0
    assert 0 < records(train_with.folder)[-1]["reward"] <= 1


@pytest.mark.slow
def test_what_stops_the_reward_of_one_rank_stops_all_with_its_reason(train_with, tmp_path, capfd):
    """Rank 1 judges the second half of a step's prompts, rank 0 the first; each sends the rows of its own."""
    recipe = tmp_path / "of_two.py"
    reward = """
import os
from fastgrpo.rewards import RewardError

def reward(response, answer, row, group):
    if os.path.exists(FLAG) and not response.startswith("Six times"):
        os.rename(FLAG, FLAG + ".used")
        raise RewardError("the judge's account is empty")
    return float(row["prompt"][0]["content"].count("+"))
"""
    flag = tmp_path / "flag"
    recipe.write_text(TINY.read_text() + reward.replace("FLAG", repr(str(flag))))
    arguments = [str(recipe), "--runs_dir", str(train_with.folder.parent), "--ranks", "2", *ONE_STEP]
    assert command(arguments) == 0
    assert len(records(train_with.folder)) == 1
    flag.touch()
    assert command([*arguments, "--overwrite"]) == STOPPED
    assert "the reward cannot go on: the judge's account is empty" in capfd.readouterr().err


@pytest.mark.slow
def test_a_metric_that_fails_on_one_rank_stops_all_with_its_reason(train_with, tmp_path, capfd):
    recipe = tmp_path / "of_two.py"
    metric = """
import os
from fastgrpo.algorithm import Algorithm

def mine(rewards, outcomes):
    return {"mine": 1 / (1 - int(os.environ["RANK"]))}

algorithm = Algorithm(metrics=mine)
"""
    recipe.write_text(TINY.read_text() + metric)
    arguments = [str(recipe), "--runs_dir", str(train_with.folder.parent), "--ranks", "2", *ONE_STEP]
    assert command(arguments) == STOPPED
    assert "mine, of the recipe's metrics, failed: ZeroDivisionError" in capfd.readouterr().err
