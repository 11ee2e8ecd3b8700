"""The kernels' benchmarks at a small shape: what they write, and that a wrong row cannot look right."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import bench.linear_grpo
from bench import harness, kernel_subjects
from bench.__main__ import main
from bench.head_implementations import naive_logprobs
from bench.peers import kernels
from bench.peers.kernels import Peer

SUBJECTS = {
    "linear_grpo": {"forward and backward"},
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


def test_a_peer_that_cannot_run_is_named_with_its_reason(results, peers, capsys):
    peers(
        Peer("absent", "no_such_package", broken),
        Peer("on a GPU", "torch", broken, needs_cuda=True),
        Peer("older", "torch", broken),
        Peer("failing", "torch", lambda: raises),
    )
    assert main(["linear_logprobs", "--quick", "--output", "peers"]) == 0
    rows = rows_of(results, "linear_logprobs_peers_quick", "forward")
    reasons = {name: rows[name]["why_not"] for name in ("absent", "on a GPU", "older", "failing")}
    assert reasons == {
        "absent": "not installed",
        "on a GPU": "needs CUDA",
        "older": "not in this version: no such function",
        "failing": "failed: RuntimeError: an odd shape",
    }
    assert "    absent: not installed" in capsys.readouterr().out


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
