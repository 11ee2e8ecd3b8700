"""The check at the real shape, at a small one: it passes what is right, and finds one wrong row or column."""

import json
from pathlib import Path

import pytest
import torch

from bench import harness, real_shape
from bench.__main__ import main

CPU = torch.device("cpu")
SHAPE = ["--shape", "72,16,530"]
WAY, OTHER = "linear_logprobs, plain", "linear_logprobs forward, plain"


@pytest.fixture
def results(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    return tmp_path / harness.device_slug(CPU)


@pytest.fixture
def planted(monkeypatch):
    """Changes the result of `linear_logprobs` before it is compared."""
    right = real_shape._logprobs

    def plant(change) -> None:
        def run(inputs):
            outcome = right(inputs)
            change(outcome)
            return outcome

        monkeypatch.setattr(real_shape, "_logprobs", run)

    return plant


def rows_of(folder: Path) -> dict:
    content = json.loads((folder / "real_shape.json").read_text())
    return {row["name"]: row for row in content["results"]["rows"]}


def test_every_way_is_as_exact_as_the_rule_wants(results):
    assert main(["real_shape", *SHAPE]) == 0
    rows = rows_of(results)
    assert set(rows) == {way.name for way in real_shape.ways(CPU, 72)}
    assert {"linear_grpo", "linear_grpo with a bonus", "linear_logprobs with entropy"} <= {
        name.rsplit(",", 1)[0] for name in rows
    }
    for row in rows.values():
        assert not row["why_not"] and all(e["within"] for e in row["errors"].values())
    everything = rows["linear_logprobs with entropy, plain"]["errors"]
    assert set(everything) == {
        "logprobs", "entropies", "dX", "dX row", "dX column", "dW", "dW vocabulary row", "dW column",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "place", "found"),
    [
        ("grad_hidden", (71, slice(None)), "dX row"),
        ("grad_weight", (529, slice(None)), "dW vocabulary row"),
        ("grad_weight", (slice(None), 15), "dW column"),
        ("logprobs", 40, "logprobs"),
    ],
)
def test_one_wrong_row_or_column_is_found_and_named(name, place, found, results, planted, capsys):
    def change(outcome):
        outcome[name][place] *= 1.2

    planted(change)
    assert main(["real_shape", *SHAPE, "--only", WAY, "--only", OTHER]) == 1
    rows = rows_of(results)
    assert not rows[WAY]["errors"][found]["within"] and not rows[OTHER]["why_not"]
    at = place if isinstance(place, int) else next(p for p in place if isinstance(p, int))
    assert rows[WAY]["errors"][found]["at"] == at
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert WAY in last and found in last and f"at {at}" in last


def test_nan_is_not_within_any_bound(results, planted):
    def change(outcome):
        outcome["grad_hidden"][5, 3] = torch.nan

    planted(change)
    assert main(["real_shape", *SHAPE, "--only", WAY]) == 1
    assert not rows_of(results)[WAY]["errors"]["dX"]["within"]


def test_a_clipped_token_has_no_gradient_and_one_that_it_gets_is_found():
    inputs = real_shape.Inputs.random(72, 16, 530, CPU)
    oracle = real_shape.Oracle.of(inputs, real_shape.LOSS)
    clipped = (oracle.exact["grad_hidden"] == 0).all(1).nonzero()[:, 0]
    assert 0 < len(clipped) < 36
    outcome = {"grad_hidden": oracle.exact["grad_hidden"].clone()}
    outcome["grad_hidden"][clipped[0]] += 1e-4 * outcome["grad_hidden"].abs().max()
    error = real_shape.errors(outcome, oracle.exact)["dX row"]
    assert error.at == clipped[0] and error.size > real_shape.bound("dX row", oracle.plain["dX row"])


def test_a_way_that_raises_hides_no_other(results, monkeypatch, capsys):
    def broken(inputs):
        raise RuntimeError("an illegal address")

    monkeypatch.setattr(real_shape, "_logprobs", broken)
    assert main(["real_shape", *SHAPE, "--only", WAY, "--only", OTHER]) == 1
    assert [name for name, row in rows_of(results).items() if row["why_not"]] == [WAY]
    assert "an illegal address" in capsys.readouterr().err.strip().splitlines()[-1]


def test_the_targets_are_both_sides_of_every_border():
    ids = real_shape.Inputs.random(72, 16, 530, CPU).target_ids.tolist()
    for edge in (0, 529, 63, 64, 127, 128, 255, 256, 511, 512):
        assert edge in ids[:20] and edge in ids[-20:]


def test_the_oracle_is_the_definition_over_all_rows_at_once(monkeypatch):
    """Slices of rows, the last one shorter, add up to it."""
    monkeypatch.setattr(real_shape, "SLICE_ROWS", 32)
    x = real_shape.Inputs.random(72, 16, 530, CPU)
    found = real_shape.by_definition(x, real_shape.LOSS_AND_BONUS, torch.float64)
    hidden, weight = (t.double().requires_grad_() for t in (x.hidden, x.weight))
    loss = real_shape.reference.linear_grpo(
        hidden, weight, x.target_ids, x.old_logprobs.double(), x.advantages.double(), 72, real_shape.BONUS
    )
    loss.backward()
    for name, right in (("loss", loss), ("grad_hidden", hidden.grad), ("grad_weight", weight.grad)):
        torch.testing.assert_close(found[name], right.detach(), rtol=1e-9, atol=1e-12)


def test_a_shape_that_is_none_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["real_shape", "--shape", "72,16"])
    assert "--shape must be T,D,V" in capsys.readouterr().err


def test_processes_compile_every_way_ahead_and_write_nothing(results, monkeypatch):
    commands, run = [], []
    monkeypatch.setattr(real_shape, "run_workers", lambda found, timeout_s: commands.extend(found))
    monkeypatch.setattr(real_shape, "_logprobs", run.append)
    names = [way.name for way in real_shape.ways(CPU, 72)]
    assert main(["real_shape", *SHAPE, "--processes", "3", "--only", OTHER, "--only", names[0]]) == 0
    assert sorted(argument for command in commands for argument in command if argument.startswith("--only")) == sorted(
        f"--only={name}" for name in (OTHER, names[0])
    )
    before = (results / "real_shape.json").read_text()
    assert main([*commands[0], f"--only={WAY}"]) == 0
    (inputs,) = run
    assert inputs.hidden.shape == (72, 16) and (results / "real_shape.json").read_text() == before
