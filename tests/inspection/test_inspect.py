"""`fastgrpo inspect` on the tiny recipe's model: what it says, what it refuses, and how it ends."""

import json
import os
import re
import shutil
import signal
import threading

import pytest

from fastgrpo.command_line.exit_codes import of_signal
from fastgrpo.inspection import draw as drawing
from fastgrpo.inspection.__main__ import main
from fastgrpo.json_lines import JsonLines
from tests.conftest import TINY

FAILED, REFUSED = 1, 2
QUICK = ("--problems", "3", "--answers", "4", "--device", "cpu")
SUFFIX = ("--data.suffix", " Answer in \\boxed{}.")


@pytest.fixture
def inspect(tiny_base, capfd):
    """Inspects the tiny model on its training sums without a recipe: (exit code, stdout, stderr)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main([str(tiny_base / "model"), str(tiny_base / "train.jsonl"), *QUICK, *SUFFIX, *arguments])
        return code, *capfd.readouterr()

    return run


def test_a_base_that_writes_no_box_is_told_the_cause_and_the_mend(inspect):
    code, said, _ = inspect("--rollout.max_response_tokens", "2")
    assert code == 0 and "It cannot learn as it is: 0 of 3 groups have signal at temperature 1" in said
    assert "0 of 12 responses have a box, and strict_boxed accepts nothing else." in said
    assert re.search(r"\d+ of 12 responses are cut at 2 tokens\.", said)
    assert "longer responses: --rollout.max_response_tokens 4\n" in said
    assert re.search(r"mathd_or_sympy +0 of 12, 0 % +0 of 3", said) and "dapo_minerva" in said


def test_the_prompt_the_ends_the_responses_and_the_table_are_shown(inspect, tiny_base):
    code, said, _ = inspect("--shown", "2", "--temperatures", "0.5", "--rollout.max_response_tokens", "24")
    assert code == 0
    (prompt,) = re.findall(r"^\[<\|user\|>\](.*) Answer in \\boxed\{\}\.\[<\|assistant\|>\]$", said, re.MULTILINE)
    rows = [json.loads(line) for line in (tiny_base / "train.jsonl").read_text().splitlines()]
    (row,) = [r for r in rows if r["prompt"][0]["content"] == prompt]
    assert f"problem 1: {prompt}" in said and f"answer: {row['reward_model']['ground_truth']}\n" in said
    assert "  0 <|endoftext|>" in said and "problem 3" not in said
    assert len(re.findall(r"^  [1-4] (right|wrong), (ended|cut), \d+ tokens$", said, re.MULTILINE)) == 8
    assert re.findall(r"^ (\d\S*(?: \(the run\))?) +\d+ of 12, ", said, re.MULTILINE) == ["0.5", "1 (the run)"]


def test_the_responses_at_the_runs_temperature_are_those_of_its_first_step(train, capfd):
    arguments = ("--runs_dir", str(train.folder.parent))
    assert train("--steps", "1", "--data.held_out", "") == 0
    (step,) = JsonLines(train.folder / "metrics.jsonl").read()
    capfd.readouterr()
    shown = ("--problems", "8", "--answers", "4", "--temperatures", "1.5", "--shown", "8")
    assert main([str(TINY), *arguments, *shown]) == 0
    said = capfd.readouterr().out
    lengths = [int(n) for n in re.findall(r"^  \d (?:right|wrong), (?:ended|cut), (\d+) tokens$", said, re.MULTILINE)]
    right = len(re.findall(r"^  \d right", said, re.MULTILINE))
    assert (sum(lengths) / 32, right / 32) == pytest.approx((step["response_length"], step["accuracy"]))
    groups = round((1 - step["zero_advantage_frac"]) * 8)
    assert f"{groups} of 8 groups have signal" in said
    assert f"{train.folder / 'base'}: what the recipe starts from" in said


def test_at_another_temperature_the_same_noise_draws(inspect):
    """As near as no matter, two temperatures draw the same responses."""
    shown = ("--shown", "3", "--rollout.max_response_tokens", "12", "--temperatures")
    texts = []
    for own in ("1.0", "1.000000001"):
        _, said, _ = inspect(*shown, "0.5", "--rollout.temperature", own)
        texts.append(re.findall(r"^    .*$", said.partition("\nBy temperature")[0], re.MULTILINE))
    assert texts[0] == texts[1] and len(set(texts[0])) > 6


def test_a_reward_is_named_or_a_function_of_a_file(inspect, tmp_path):
    limit = ("--rollout.max_response_tokens", "8")
    own = tmp_path / "mine.py"
    own.write_text("def always(response, answer, row):\n    return 'reward_model' in row\n")
    code, said, _ = inspect(*limit, "--reward", f"{own}:always")
    assert code == 0 and "judged by always" in said and "12 of 12 responses are right." in said
    assert "harder data" in said
    code, said, _ = inspect(*limit, "--reward", "simplerl_mix", "--shown", "0")
    assert code == 0 and "judged by simplerl_mix" in said and "problem 1" not in said


def test_a_reward_that_fails_on_some_is_said_with_its_error(inspect, tmp_path):
    own = tmp_path / "mine.py"
    own.write_text("def fails(response, answer):\n    if 'Six' not in response: raise OSError('no judge')\n")
    code, said, _ = inspect("--rollout.max_response_tokens", "8", "--reward", f"{own}:fails")
    assert code == 0 and "the reward fails failed on 12 of 12 responses, the last time so: OSError: no judge" in said


def test_a_reward_that_cannot_go_on_ends_it(inspect, tmp_path):
    own = tmp_path / "mine.py"
    own.write_text(
        "from fastgrpo.rewards import RewardError\n"
        "def stops(response, answer):\n    if 'Six' not in response: raise RewardError('no credit left')\n"
    )
    code, _, complaint = inspect("--reward", f"{own}:stops", "--rollout.max_response_tokens", "8")
    assert code == FAILED and "the reward cannot go on: " in complaint and "no credit left" in complaint


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--reward", "strict_boxd"], "no verifier 'strict_boxd', did you mean strict_boxed?"),
        (["--reward", "no_such.py:reward"], "no file "),
        (["--problems", "0"], "--problems must be at least 1"),
        (["--data.max_prompt_tokens", "1"], "has at most --data.max_prompt_tokens 1 tokens"),
        (["--rollout.max_response_tokens", "10000"], "has 256 positions"),
        (["--rollout.temperature", "0"], "--rollout.temperature must be above 0"),
        (["--model.path", "nowhere/at/all"], "holds no config.json"),
    ],
)
def test_what_cannot_be_is_refused_in_words_before_weights_load(inspect, monkeypatch, arguments, words):
    monkeypatch.setattr(drawing, "start_engine", None)
    code, _, complaint = inspect(*arguments)
    assert code == REFUSED and complaint.startswith("fastgrpo: ") and words in complaint


def test_a_reward_that_cannot_work_is_refused_before_weights_load(inspect, monkeypatch, tmp_path):
    monkeypatch.setattr(drawing, "start_engine", None)
    own = tmp_path / "mine.py"
    own.write_text("def broken(response, answer):\n    return 1 / 0\n")
    code, _, complaint = inspect("--reward", f"{own}:broken", "--rollout.max_response_tokens", "8")
    assert code == REFUSED and "ZeroDivisionError" in complaint


def test_data_without_a_problem_is_refused(tiny_base, tmp_path, capfd):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    assert main([str(tiny_base / "model"), str(empty), *QUICK]) == REFUSED
    assert "empty.jsonl" in capfd.readouterr().err


def test_a_model_without_its_data_is_told_what_lacks(tiny_base, capfd):
    assert main([str(tiny_base / "model")]) == REFUSED
    assert "is a model: name its data too, fastgrpo inspect MODEL DATA" in capfd.readouterr().err
    assert main(["no_such_recipe"]) == REFUSED
    assert "no recipe 'no_such_recipe'" in capfd.readouterr().err


def test_an_unknown_setting_is_refused(inspect):
    with pytest.raises(SystemExit) as left:
        inspect("--rollout.temprature", "1")
    assert left.value.code == REFUSED


def test_help_names_the_options_without_loading_anything(capfd):
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    said = capfd.readouterr().out
    assert all(f"--{name}" in said for name in ("reward", "problems", "answers", "shown", "temperatures"))


def test_ctrl_c_ends_it_in_a_line(inspect, monkeypatch):
    generate = drawing._drawn

    def interrupted(*arguments):
        threading.Timer(0.0, os.kill, (os.getpid(), signal.SIGINT)).start()
        return generate(*arguments)

    monkeypatch.setattr(drawing, "_drawn", interrupted)
    code, _, complaint = inspect("--rollout.max_response_tokens", "200")
    assert code == of_signal(signal.SIGINT) == 130
    assert complaint.endswith("fastgrpo: stopped by SIGINT; an inspection keeps nothing\n")


def test_a_recipe_is_prepared_in_the_folder_where_its_run_finds_it(train, capfd):
    shutil.rmtree(train.folder)
    limits = ("--rollout.max_response_tokens", "4", "--runs_dir", str(train.folder.parent))
    assert main([str(TINY), *limits, *QUICK]) == 0
    assert (train.folder / "base" / "model" / "config.json").exists()
    assert train("--steps", "1", "--data.held_out", "") == 0
