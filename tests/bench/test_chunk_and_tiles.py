"""The parts of a chunk and the tile shapes: what they write, and that a failure is named and hides nothing."""

import json
from pathlib import Path

import pytest
import torch
from fastgrpo_kernels import dispatch, reference

from bench import chunk_parts, harness, tile_sweep
from bench.__main__ import main

pytest.importorskip("triton")
CPU = torch.device("cpu")
SHAPE = ["--shape", "64,16,1000"]


@pytest.fixture
def results(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    return tmp_path / harness.device_slug(CPU)


def rows_of(folder: Path, subject: str) -> dict:
    content = json.loads((folder / f"{subject}.json").read_text())
    return {row["name"]: row for row in content["results"]["rows"]}


def test_every_part_has_a_time_beside_its_limit(results):
    assert main(["chunk_parts", *SHAPE, "--chunk_tokens", "16"]) == 0
    rows = rows_of(results, "chunk_parts")
    assert rows["logits: dW, added to"]["times"] == 3 and rows["logits: dW, first chunk"]["times"] == 1
    for row in rows.values():
        assert row["seconds"] > 0 and row["limit_seconds"] > 0
        assert row["ratio"] == row["seconds"] / row["limit_seconds"]


def test_a_part_that_fails_is_named_and_the_others_are_timed(results, monkeypatch, capsys):
    def fails(*_):
        raise RuntimeError("no such algorithm")

    monkeypatch.setattr(chunk_parts, "add_product", fails)
    assert main(["chunk_parts", *SHAPE]) == 1
    rows = rows_of(results, "chunk_parts")
    failed = [name for name, row in rows.items() if row["why_not"]]
    assert failed == ["logits: dW, added to"] and rows["logits: dX"]["seconds"] > 0
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "logits: dW, added to" in last and "no such algorithm" in last


def test_a_clock_that_stands_still_divides_nothing_by_zero(results, monkeypatch):
    monkeypatch.setattr(harness.time, "perf_counter", lambda: 0.0)
    monkeypatch.setattr(chunk_parts, "timed", lambda work, device, **_: harness.Timing(harness.SHORTEST_S, 0.0, 1))
    assert main(["chunk_parts", *SHAPE]) == 0


def test_the_parts_of_tiles_make_the_gradient_of_a_step():
    """Interpreted, in float32: what the parts of the first of two chunks leave is what the definition says."""
    inputs = chunk_parts.Inputs.random(16, 16, 300, torch.float32, CPU)
    with dispatch.forced("gpu"):
        parts = {part.name: part for part in chunk_parts.tile_parts(inputs, 8)}
        assert parts["first matmul, exponentials stored"].times == 2
        assert parts["first matmul, nothing stored"].times == 0
        assert (parts["dW, first chunk"].times, parts["dW, added to"].times) == (1, 1)
        parts["first matmul, nothing stored"].work()
        parts["dX"].prepare()
        parts["dX"].work()
        of_hidden = parts["factors on dX"].work()
    hidden = inputs.hidden[:8].requires_grad_()
    logprobs, _ = reference.linear_logprobs(hidden, inputs.weight, inputs.target_ids[:8])
    logprobs.backward(inputs.grad_logprobs[:8])
    torch.testing.assert_close(of_hidden, hidden.grad, rtol=1e-4, atol=1e-6)


def test_the_sweep_measures_every_shape_and_names_the_best(results, monkeypatch, capsys):
    """The bare matmul takes 1 s; the second shape is the fastest."""
    clock = iter([1.0, 8.0, 4.0, 6.0])
    monkeypatch.setattr(tile_sweep, "median_seconds", lambda work, device: (work(), next(clock))[1])
    assert main(["tile_sweep"]) == 0
    rows = rows_of(results, "tile_sweep")
    names = [tile_sweep.name_of(shape) for shape in tile_sweep.INTERPRETED]
    assert list(rows) == names and {row["verdict"] for row in rows.values()} == {"measured"}
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == (f"best tile shape: {names[1]}: 4000.00 ms a chunk, default 8000.00 ms, torch.mm alone 1000.00 ms")


@pytest.fixture
def quick_shapes(monkeypatch):
    """Two shapes, and their real timing left out."""
    monkeypatch.setattr(tile_sweep, "INTERPRETED", tile_sweep.INTERPRETED[:2])
    monkeypatch.setattr(tile_sweep, "median_seconds", lambda work, device: 1.0)


def test_a_shape_with_another_result_is_wrong(results, quick_shapes, monkeypatch, capsys):
    right = tile_sweep.run

    def off(shape, inputs):
        found = right(shape, inputs)
        if shape != tile_sweep.INTERPRETED[0]:
            found.grad_logits[3, 7] += found.grad_logits.norm()
        return found

    monkeypatch.setattr(tile_sweep, "run", off)
    assert main(["tile_sweep"]) == 1
    verdicts = [row["verdict"] for row in rows_of(results, "tile_sweep").values()]
    assert verdicts == ["measured", "WRONG"]
    assert "its gradient is off" in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(("fails", "code"), [(0, 1), (1, 0)])
def test_a_shape_that_cannot_run_is_a_row_and_fails_the_sweep_if_it_is_the_default(
    fails, code, results, quick_shapes, monkeypatch
):
    right, failing = tile_sweep.run, tile_sweep.INTERPRETED[fails]

    def run(shape, inputs):
        if shape == failing:
            raise RuntimeError("out of resource: shared memory")
        return right(shape, inputs)

    monkeypatch.setattr(tile_sweep, "run", run)
    assert main(["tile_sweep"]) == code
    rows = rows_of(results, "tile_sweep")
    assert rows[tile_sweep.name_of(failing)]["verdict"] == "cannot run"
    assert "shared memory" in rows[tile_sweep.name_of(failing)]["why_not"]
    assert sorted(row["verdict"] for row in rows.values()) == ["cannot run", "measured"]


def test_what_the_time_does_not_reach_is_named(results, quick_shapes):
    assert main(["tile_sweep", "--budget_s", "0"]) == 0
    assert [row["verdict"] for row in rows_of(results, "tile_sweep").values()] == ["measured", "not reached"]


def test_a_shape_that_ended_its_process_is_not_run_here(results, quick_shapes, monkeypatch):
    names = [tile_sweep.name_of(shape) for shape in tile_sweep.INTERPRETED[:2]]
    good = tile_sweep._ROW + json.dumps({"name": names[0], "seconds": 1.0, "why_not": ""})
    monkeypatch.setattr(tile_sweep, "run_workers", lambda commands, timeout_s: [([good], ""), ([], "exit -11: gone")])
    assert main(["tile_sweep", "--processes", "2"]) == 0
    rows = rows_of(results, "tile_sweep")
    assert rows[names[1]]["verdict"] == "cannot run" and "exit -11" in rows[names[1]]["why_not"]


def test_a_worker_compiles_its_share(results, quick_shapes, capsys):
    assert main(["tile_sweep", "--compile", "1/2"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith(tile_sweep._ROW)]
    row = json.loads(line.removeprefix(tile_sweep._ROW))
    assert row["name"] == tile_sweep.name_of(tile_sweep.INTERPRETED[1]) and row["why_not"] == ""
