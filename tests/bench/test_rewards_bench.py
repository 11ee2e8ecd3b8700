"""The benchmark of the verifier pool: what it judges is judged alike, and a ratio means what it says."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench import harness, judged_steps, rewards
from bench.__main__ import main


@pytest.fixture
def results(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    return tmp_path


@pytest.fixture
def cases(tmp_path) -> Path:
    path = tmp_path / "cases.jsonl"
    row = {"solutions": ["\\boxed{42}"], "generateds": ["It is \\boxed{42}.", "It is \\boxed{41}.", "It is 42."]}
    path.write_text((json.dumps(row) + "\n") * 2)
    return path


@pytest.mark.slow
def test_quick_prints_the_ratios_last_and_keeps_nothing(results, cases, monkeypatch, capsys):
    monkeypatch.setattr(rewards, "VERIFIERS", {"strict_boxed": (1, 2), "math_verify": (1, 2)})
    assert main(["rewards", "--quick", "--cases", str(cases)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert "6 judged responses repeated" in "\n".join(printed)
    assert "caller's core" in "\n".join(printed) and "loop keeps" in "\n".join(printed)
    assert printed[-5].startswith("pool / (") and "strict_boxed: " in printed[-5]
    assert "math_verify: " in printed[-4] and printed[-4].endswith("(bar >= 0.8)")
    assert printed[-3].startswith("step with a 50 ms reward") and printed[-3].endswith("(bar <= 1.1)")
    assert printed[-2].startswith("the same, asked after the last response: ")
    assert printed[-1].startswith("rate of decoding beside judging / without: ")
    assert not list(results.rglob("rewards.json"))


@pytest.mark.slow
def test_a_full_run_is_kept_with_its_rates(results, cases, monkeypatch):
    monkeypatch.setattr(rewards, "VERIFIERS", {"strict_boxed": (2, 1)})
    monkeypatch.setattr(rewards, "TRAINER_S", {"full": 0.1, "quick": 0.1})
    monkeypatch.setattr(judged_steps, "FULL", replace(judged_steps.QUICK, rounds=2))
    assert main(["rewards", "--rounds", "2", "--cases", str(cases)]) == 0
    (path,) = results.rglob("rewards.json")
    results_of = json.loads(path.read_text())["results"]
    steps = results_of["judged_steps"]
    assert [len(of_kind) for of_kind in steps["steps"].values()] == [2, 2, 2]
    assert len(steps["ratios"]) == len(steps["decoding_kept"]) == 2 and len(steps["lengths"]) == 4
    found = results_of["strict_boxed"]
    assert len(found["bare"]) == len(found["pool"]) == 2
    assert found["ratio"] > 0 and found["trainer_kept_frac"] > 0 and found["core_frac"] > 0


def test_the_ratio_is_of_the_pool_to_all_cores(monkeypatch):
    monkeypatch.setattr(rewards, "num_cores", lambda: 4)
    found = rewards.Rates(bare=[100.0, 100.0, 50.0], pool=[400.0, 200.0, 300.0], core_frac=0.1, trainer_kept_frac=1.0)
    assert found.ratio == 1.0
    assert found.us_an_item == pytest.approx(1e6 / 300)


def test_a_steps_ratio_is_of_the_same_round():
    def step(seconds, rollout=1.0):
        return {"step_s": seconds, "rollout_s": rollout, "reward_s": 0.0}

    kinds = (judged_steps.AT_ONCE, judged_steps.SLOW, judged_steps.SLOW_AFTERWARDS)
    steps = [[step(1.0), step(2.0)], [step(1.1, 2.0), step(2.0, 4.0)], [step(3.0, 2.0), step(3.0, 1.0)]]
    found = judged_steps.Steps(dict(zip(kinds, steps, strict=True)), [1, 2])
    assert found.ratios(judged_steps.SLOW) == [1.1, 1.0] and found.ratios(judged_steps.SLOW_AFTERWARDS) == [3.0, 1.5]
    assert found.decoding_kept == [1.0, 0.25]


def test_without_the_judged_responses_it_says_that_nothing_is_measured(tmp_path, capsys):
    assert main(["rewards", "--cases", str(tmp_path / "none.jsonl")]) == 0
    assert capsys.readouterr().out.startswith("rewards is not measured: it needs the judged responses in ")


def test_cases_are_read_with_their_answer_out_of_its_box(cases):
    found = rewards.read_cases(cases)
    assert len(found) == 6
    assert found[1] == ("It is \\boxed{41}.", "42")


def test_a_pool_that_judges_otherwise_than_a_bare_call_is_no_result(cases, monkeypatch):
    import fastgrpo.rewards

    monkeypatch.setattr(fastgrpo.rewards, "strict_boxed", lambda response, answer: True)
    monkeypatch.setattr(fastgrpo.rewards, "self_test_of", lambda verifier: fastgrpo.rewards.SELF_TEST)
    with pytest.raises(AssertionError):
        rewards.measure("strict_boxed", rewards.read_cases(cases), rewards._options(["--quick"]))
