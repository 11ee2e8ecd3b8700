"""An evaluation's files read back."""

import json
from pathlib import Path

import pytest

from fastgrpo.evaluation.records import read_evaluation


def write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def response(problem: int, sample: int, text: str = "") -> dict:
    return {"problem": problem, "sample": sample, "text": text, "num_tokens": 3, "finish_reason": "stop"}


def verdict(problem: int, sample: int, rule: bool, model: bool | None = None, **more: str) -> dict:
    return {"problem": problem, "sample": sample, "rule": rule, "model": model, "failure": "", **more}


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two problems, two samples each, out of order and from two ranks, one of them twice."""
    write(tmp_path / "evaluation.json", [{"benchmarks": {"a": {}, "a.b": {}}}])
    for name in ("a", "a.b"):
        write(tmp_path / f"problems/{name}.jsonl", [{"problem": p, "text": "?", "answer": "1"} for p in (0, 1)])
    write(tmp_path / "generations/a.jsonl", [response(1, 0), response(0, 1, "first")])
    write(tmp_path / "generations/a.rank3.jsonl", [response(0, 0), response(1, 1), response(0, 1, "again")])
    write(tmp_path / "verdicts/a.jsonl", [verdict(p, s, p == s == 1) for p in (0, 1) for s in (0, 1)])
    write(tmp_path / "generations/a.b.jsonl", [response(0, 0, "another benchmark's")])
    return tmp_path


def test_responses_of_all_ranks_come_once_in_order_with_their_verdicts(folder):
    results, _ = read_evaluation(folder).benchmarks
    assert [(j.problem, j.sample) for j in results.judged] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert results.judged[1].text == "first"
    assert results.outcomes().tolist() == [[False, False], [False, True]]


def test_the_last_verdict_of_a_response_counts_and_rule_or_model_may_accept(folder):
    with (folder / "verdicts/a.jsonl").open("a") as file:
        file.write(json.dumps(verdict(0, 0, False, True, reply="A")) + "\n")
        file.write(json.dumps(verdict(1, 0, False, False, reply="B")) + "\n")
    assert read_evaluation(folder).benchmarks[0].outcomes().tolist() == [[True, False], [False, True]]


def test_what_is_incomplete_has_no_outcomes_and_says_how_to_go_on(folder):
    verdicts = folder / "verdicts/a.jsonl"
    verdicts.write_bytes(verdicts.read_bytes()[:-5])  # the last one torn
    results, other = read_evaluation(folder).benchmarks
    assert len(results.judged) == 3 and other.judged == []
    for incomplete in (results, other):
        with pytest.raises(ValueError, match=r"incomplete.*same `fastgrpo evaluate` command"):
            incomplete.outcomes()


def test_what_the_rule_rejected_is_open_until_the_verifier_model_has_spoken(tmp_path):
    (tmp_path / "evaluation.json").write_text(json.dumps({"verifier_model": "judge", "benchmarks": {"b": {}}}))
    verdict = {"problem": 0, "failure": ""}
    rows = {
        "problems": [{"problem": 0, "text": "", "answer": "1"}],
        "generations": [
            {"problem": 0, "sample": s, "text": "", "num_tokens": 1, "finish_reason": "stop"} for s in range(3)
        ],
        "verdicts": [
            {**verdict, "sample": 0, "rule": True, "model": None},
            {**verdict, "sample": 1, "rule": False, "model": None},
            {**verdict, "sample": 2, "rule": False, "model": False},
        ],
    }
    for name, lines in rows.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "b.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [(j.sample, j.correct) for j in read_evaluation(tmp_path).benchmarks[0].judged] == [(0, True), (2, False)]


def test_a_folder_without_an_evaluation_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no evaluation in"):
        read_evaluation(tmp_path)
