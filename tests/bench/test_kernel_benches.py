"""The kernels' benchmarks at a small shape: what they write, and that a wrong row cannot look right."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import bench.linear_grpo
import bench.linear_logprobs
from bench import harness, headlines, kernel_subjects
from bench.__main__ import main
from bench.head_implementations import NAIVE, naive_logprobs
from bench.peers import kernels
from bench.peers.kernels import Peer

SUBJECTS = {
    "linear_grpo": {"forward and backward", bench.linear_grpo.WITHOUT_SIGNAL},
    "linear_logprobs": {"forward", "forward and backward"},
    "grpo_loss": {"forward and backward"},
    "group_advantages": {"forward"},
    "row_pass": {"row_stats and row_gradient", "logprobs_from_logits"},
}
CPU = torch.device("cpu")


@pytest.fixture
def results(tmp_path, monkeypatch) -> Path:
    """An empty folder of results. Memory, which takes a process for each row, is made up; threads stay as they are."""
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(kernel_subjects, "run_worker", lambda arguments: {"peak_bytes": 2**20})
    monkeypatch.setattr(kernel_subjects, "num_cores", torch.get_num_threads)
    return tmp_path / harness.device_slug(CPU)


@pytest.fixture
def peers(monkeypatch):
    """Replaces the peers of the LM head, which may not be installed."""

    def replace(*found: Peer) -> None:
        monkeypatch.setattr(kernels, "LOGPROBS", found)
        monkeypatch.setattr(kernels, "GRPO", ())
        monkeypatch.setattr(kernels, "CROSS_ENTROPY", ())

    return replace


def rows_of(folder: Path, name: str, mode: str) -> dict[str, dict[str, Any]]:
    content = json.loads((folder / f"{name}.json").read_text())
    return {row["name"]: row for row in content["results"]["tables"][mode]["rows"]}


@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_quick_run_writes_every_documented_field(subject, results, peers, capsys):
    peers()
    assert main([subject, "--quick"]) == 0
    content = json.loads((results / f"{subject}_quick.json").read_text())
    assert set(content["results"]) == {"shape", "peers", "tables"}
    assert set(content["results"]["tables"]) == SUBJECTS[subject]
    for table in content["results"]["tables"].values():
        assert {"dtype", "limit", "plain", "oracle_shape", "floor", "rows"} == set(table)
        for row in table["rows"]:
            if not row["why_not"]:
                assert row["within"] and row["seconds"] > 0 and row["ratio"] > 0 and len(row["ratios"]) == 2
                assert {"spread_frac", "ratio_spread_frac", "peak_of_plain", "errors", "relative"} <= set(row)
        measured = [row for row in table["rows"] if row.get("peak_bytes")]
        assert [row["peak_of_plain"] for row in measured] == [1.0, 1.0]
    last = capsys.readouterr().out.strip().splitlines()[-1]
    for what, value, bar in content["headline"]:
        assert f"{what}: {value}, bar {bar}" in last


def test_a_peer_with_other_numbers_is_marked(results, peers, capsys):
    peers(Peer("wrong peer", "torch", lambda: lambda inputs: naive_logprobs(inputs) * 1.001))
    assert main(["linear_grpo", "--quick"]) == 0
    rows = rows_of(results, "linear_grpo_quick", "forward and backward")
    assert not rows["wrong peer"]["within"] and rows["ours, plain torch"]["within"]
    line = next(line for line in capsys.readouterr().out.splitlines() if "wrong peer" in line)
    assert line.rstrip().endswith("DIFFERS")


def test_a_wrong_result_of_ours_is_the_exit_code(results, peers, monkeypatch):
    peers()
    ours = bench.linear_grpo.our_grpo
    monkeypatch.setattr(bench.linear_grpo, "our_grpo", lambda inputs: ours(inputs) * 1.001)
    assert main(["linear_grpo", "--quick"]) == 1


def broken() -> Any:
    raise ImportError("no such function")


def raises(inputs: Any) -> Any:
    raise RuntimeError("an odd shape\nand more")


def does_not_fit(inputs: Any) -> Any:
    raise torch.OutOfMemoryError("tried to allocate much")


def test_a_peer_that_cannot_run_is_named_with_its_reason_and_has_not_failed(results, peers, capsys):
    peers(
        Peer("absent", "no_such_package", broken),
        Peer("on a GPU", "torch", broken, needs_cuda=True),
        Peer("older", "torch", broken),
        Peer("large", "torch", lambda: does_not_fit),
    )
    assert main(["linear_logprobs", "--quick", "--output", "peers"]) == 0
    rows = rows_of(results, "linear_logprobs_peers_quick", "forward")
    reasons = {name: rows[name]["why_not"] for name in ("absent", "on a GPU", "older", "large")}
    assert reasons == {
        "absent": "not installed",
        "on a GPU": "needs CUDA",
        "older": "not in this version: no such function",
        "large": "out of memory",
    }
    assert "    absent: not installed" in capsys.readouterr().out


def test_a_peer_that_fails_is_the_exit_code_and_hides_no_other_row(results, peers, capsys):
    peers(Peer("failing", "torch", lambda: raises))
    assert main(["linear_grpo", "--quick"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "bench linear_grpo: failing, forward and backward failed: RuntimeError: an odd shape"
    rows = rows_of(results, "linear_grpo_quick", "forward and backward")
    assert rows["failing"]["why_not"] == "failed: RuntimeError: an odd shape"
    assert rows["ours, plain torch"]["seconds"] > 0


def test_ours_out_of_memory_is_the_exit_code(results, peers, monkeypatch, capsys):
    peers()
    monkeypatch.setattr(bench.linear_grpo, "our_two_ops", does_not_fit)
    assert main(["linear_grpo", "--quick", "--only", "ours, in two ops (four matmuls)"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith("(four matmuls), forward and backward failed: out of memory")


def fails_from(call: int) -> Any:
    calls: list[int] = []

    def logprobs(inputs: Any) -> Any:
        calls.append(1)
        return naive_logprobs(inputs) if len(calls) < call else raises(inputs)

    return logprobs


def test_a_row_that_fails_in_a_timing_round_is_dropped_with_its_reason(results, peers, monkeypatch, capsys):
    """Compared once, tried once, warmed up for no time: the fourth call is the first timed one."""
    real = kernel_subjects.interleaved
    monkeypatch.setattr(kernel_subjects, "interleaved", lambda *a, **k: real(*a, **{**k, "warmup_s": 0}))
    late = fails_from(4)
    peers(Peer("late", "torch", lambda: late))
    assert main(["linear_grpo", "--quick"]) == 1
    assert "bench linear_grpo: late, forward and backward failed: RuntimeError: an odd shape" in capsys.readouterr().err
    rows = rows_of(results, "linear_grpo_quick", "forward and backward")
    assert "errors" in rows["late"] and "seconds" not in rows["late"]
    assert [len(rows[name]["ratios"]) for name in ("ours, plain torch", NAIVE)] == [2, 2]


def test_a_limit_that_fails_is_every_row_s_failure_and_the_other_table_is_measured(results, peers, monkeypatch):
    peers()
    monkeypatch.setattr(bench.linear_logprobs, "one_matmul", raises)
    assert main(["linear_logprobs", "--quick"]) == 1
    forward = rows_of(results, "linear_logprobs_quick", "forward")
    assert forward["ours, plain torch"]["why_not"] == "failed: RuntimeError: an odd shape"
    assert rows_of(results, "linear_logprobs_quick", "forward and backward")["ours, plain torch"]["seconds"] > 0


def test_memory_that_cannot_be_measured_is_the_exit_code(results, peers, monkeypatch, capsys):
    peers()
    monkeypatch.setattr(kernel_subjects, "run_worker", lambda arguments: {"error": "took longer than 300 s"})
    assert main(["group_advantages", "--quick", "--only", "eager torch"]) == 1
    error = capsys.readouterr().err
    assert error == "bench group_advantages: eager torch failed: its memory: took longer than 300 s\n"


def test_only_measures_its_rows_and_keeps_the_others(results):
    arguments = ["row_pass", "--quick"]
    assert main(arguments) == 0
    before = {mode: rows_of(results, "row_pass_quick", mode) for mode in SUBJECTS["row_pass"]}
    assert main([*arguments, "--only", "ours, plain torch"]) == 0
    for mode, old in before.items():
        rows = rows_of(results, "row_pass_quick", mode)
        assert list(rows) == list(old)
        assert {name for name in rows if rows[name] != old[name]} == {"ours, plain torch"}


def test_rows_measured_apart_are_compared_by_what_each_is_to_the_limit():
    def row(name: str, measured: str, ratios: list[float]) -> dict[str, Any]:
        return {"name": name, "measured": measured, "ratios": ratios, "ratio": ratios[1], "seconds": 1.0}

    theirs = row("eager", "today", [1.0, 8.0, 9.0])
    rows = {"x": [row("ours", "yesterday", [1.0, 2.0, 3.0, 4.0, 5.0]), theirs]}
    measured = kernel_subjects.Measured((1,), CPU, rows)
    assert headlines.faster_than(measured, "x", "eager", "{}", "")[1] == "4.0x"
    rows["x"][0] = row("ours", "today", [1.0, 2.0, 3.0])
    assert headlines.faster_than(measured, "x", "eager", "{}", "")[1] == "3.0x"


def test_only_refuses_to_stand_beside_rows_of_another_shape(results, peers, capsys):
    peers()
    assert main(["grpo_loss", "--quick", "--shape", "64", "--only", "eager torch"]) == 0
    with pytest.raises(SystemExit) as refused:
        main(["grpo_loss", "--quick", "--shape", "128", "--only", "eager torch"])
    assert refused.value.code == 2
    assert "give --output NAME" in capsys.readouterr().err


def test_rows_are_in_the_file_as_soon_as_they_have_a_time(results, peers, monkeypatch):
    def killed(arguments: Any) -> Any:
        raise KeyboardInterrupt

    peers()
    monkeypatch.setattr(kernel_subjects, "run_worker", killed)
    with pytest.raises(KeyboardInterrupt):
        main(["linear_logprobs", "--quick"])
    assert rows_of(results, "linear_logprobs_quick", "forward")["ours, plain torch"]["seconds"] > 0


@pytest.mark.parametrize("shape", ["12,64,1000", "128,64", "128,64,x", "0,64,1000"])
def test_a_shape_that_does_not_fit_is_refused(shape, capsys):
    with pytest.raises(SystemExit):
        main(["linear_grpo", "--shape", shape])
    assert "--shape must be T,D,V" in capsys.readouterr().err


def test_memory_on_a_cpu_is_that_of_a_fresh_process():
    arguments = ["row_pass", "--shape", "64,65536", "--worker", "row_stats and row_gradient", "eager torch"]
    found = harness.run_worker(arguments)
    logits_bytes = 64 * 65536 * 4
    assert 2 * logits_bytes <= found["peak_bytes"] <= 5 * logits_bytes


def test_interleaved_runs_one_of_each_in_every_round():
    calls: list[str] = []
    works = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    times = harness.interleaved(works, CPU, prepare=lambda: calls.append("-"), rounds=2, warmup_s=0)
    assert "".join(calls) == "-a-b" + 2 * "-a-b"
    assert [len(t) for t in times.values()] == [2, 2]


def test_interleaved_ends_early_after_a_round_where_time_is_short():
    times = harness.interleaved({"a": lambda: None}, CPU, rounds=9, warmup_s=0, budget_s=0)
    assert len(times["a"]) == 1
