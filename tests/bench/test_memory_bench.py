"""The memory benchmark: every variant does the same update, and one that could not be measured is the exit code."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from bench import harness, memory
from bench.__main__ import main
from bench.memory import ROWS, measure, row_name, scaled_down
from bench.memory_model import VARIANTS, Case
from bench.shapes import Shape

CPU = torch.device("cpu")
TINY = Shape("tiny", "qwen2", 2, 64, 128, 4, 2, 16, 512)
OURS, PLAIN = "packed_chunked, checkpointed", "padded_logits, checkpointed"
FIGURES = {"above_weights_gib": 0.5, "peak_gib": 0.75, "update_s": 1.0, "gradient_norm": 2.0}


def tiny_case(checkpointing: bool) -> Case:
    return replace(scaled_down(checkpointing, TINY), lengths=(40, 56, 24), prompt_tokens=8)


@pytest.fixture(scope="module")
def found():
    """What every variant finds, by checkpointing and variant, each in a group of ranks of its own."""
    figures = {}
    for checkpointing, variant in ROWS:
        figures[checkpointing, variant] = measure(variant, tiny_case(checkpointing), CPU)
        dist.destroy_process_group()
    return figures


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_measured(found, variant, checkpointing):
    row = found[checkpointing, variant]
    assert set(row) == set(FIGURES)
    assert row["peak_gib"] > 0 and row["update_s"] > 0 and row["gradient_norm"] > 0


def test_all_variants_have_the_same_gradient(found):
    norms = [row["gradient_norm"] for row in found.values()]
    assert norms == pytest.approx([norms[0]] * 6, rel=1e-5)


@pytest.fixture
def results(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    return tmp_path / harness.device_slug(CPU)


@pytest.fixture
def workers(monkeypatch):
    """Replaces the fresh processes: what a row's finds is in ``answers`` by its name, else it is `FIGURES`."""
    answers: dict[str, dict] = {}
    called: list[str] = []

    def run_worker(arguments, timeout_s):
        name = row_name(arguments[4], "--worker_checkpointing" in arguments)
        called.append(name)
        return answers.get(name, FIGURES)

    monkeypatch.setattr(memory, "run_worker", run_worker)
    run_worker.answers, run_worker.called = answers, called
    return run_worker


def rows_of(folder: Path) -> dict[str, dict]:
    content = json.loads((folder / "memory.json").read_text())
    return {row["name"]: row for row in content["results"]["measured"]}


@pytest.mark.parametrize("name", [OURS, PLAIN])
def test_a_variant_that_fails_is_the_exit_code_and_named_and_hides_no_other(name, results, workers, capsys):
    workers.answers[name] = {"error": "TypeError: what it said"}
    assert main(["memory"]) == 1
    assert capsys.readouterr().err == f"bench memory: {name} failed: TypeError: what it said\n"
    rows = rows_of(results)
    assert len(rows) == 6 and rows[name]["error"] == "TypeError: what it said"
    assert sum("peak_gib" in row for row in rows.values()) == 5


def test_out_of_memory_is_a_result_of_a_plain_variant_on_a_gpu_and_of_nothing_else():
    row = {"oom": "1.00 GiB", "variant": "padded_logits", "device": "cuda"}
    assert not memory._failed(row)
    assert memory._failed(row | {"variant": "packed_chunked"})
    assert memory._failed(row | {"device": "cpu"})


def test_only_measures_its_row_and_keeps_the_others(results, workers):
    assert main(["memory"]) == 0
    workers.called.clear()
    workers.answers[OURS] = FIGURES | {"peak_gib": 9.0}
    assert main(["memory", "--only", OURS]) == 0
    assert workers.called == [OURS]
    rows = rows_of(results)
    assert list(rows) == [row_name(variant, checkpointing) for checkpointing, variant in ROWS]
    assert [row["peak_gib"] for row in rows.values()] == [0.75, 0.75, 9.0, 0.75, 0.75, 0.75]
    headline = json.loads((results / "memory.json").read_text())["headline"]
    assert [OURS, "9.00 GiB"] in [line[:2] for line in headline] and [PLAIN, "0.75 GiB"] in [h[:2] for h in headline]


def test_a_row_that_failed_before_is_no_failure_of_another(results, workers):
    workers.answers[PLAIN] = {"error": "x"}
    assert main(["memory"]) == 1
    assert main(["memory", "--only", OURS]) == 0
    assert rows_of(results)[PLAIN]["error"] == "x"


def test_a_row_is_in_the_file_before_the_next_one_runs(results, workers, monkeypatch):
    def killed(arguments, timeout_s):
        if workers.called:
            raise KeyboardInterrupt
        return workers(arguments, timeout_s)

    monkeypatch.setattr(memory, "run_worker", killed)
    with pytest.raises(KeyboardInterrupt):
        main(["memory"])
    assert list(rows_of(results)) == [PLAIN]
