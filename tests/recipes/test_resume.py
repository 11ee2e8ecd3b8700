"""A run with phases and resets that stops and goes on is the run that never stopped, bit for bit."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file

from fastgrpo.algorithm import Phase, ReferenceReset
from fastgrpo.algorithm.shaping import StopProperly
from fastgrpo.ranks import Role
from fastgrpo.train import main
from tests.recipes.shrunk import Metrics, run_shrunk

STEPS = 5


def without_clock(records: Metrics) -> Metrics:
    return [{k: v for k, v in r.items() if not k.endswith(("_s", "tokens_per_s"))} for r in records]


def weights_of(runs: Path, step: int) -> dict[str, torch.Tensor]:
    folder = next(runs.glob("*/checkpoints")) / f"step_{step:06d}" / "hf"
    return load_file(folder / "model.safetensors")


def run(runs: Path, *settings: str, **algorithm: Any) -> Metrics:
    moving = ["--optimizer.learning_rate", "1e-3"]
    return without_clock(run_shrunk("prorl_v2_1_5b", runs, *moving, *settings, **algorithm))


@pytest.mark.parametrize(
    "stops, reset",
    [
        pytest.param([1], ReferenceReset(1), id="where the first phase begins"),
        pytest.param([1, 2, 3], ReferenceReset(2, clear_optimizer=True), id="three times, the optimizer cleared"),
    ],
)
def test_phases_and_resets_survive_resume_bit_for_bit(stops, reset, tmp_path):
    whole = run(tmp_path / "whole", "--steps", str(STEPS), reference_reset=reset)
    for number, stop in enumerate(stops):
        run(tmp_path / "parts", "--steps", str(stop), *(["--resume"] if number else []), reference_reset=reset)
    parts = run(tmp_path / "parts", "--steps", str(STEPS), "--resume", reference_reset=reset)
    assert parts == whole
    theirs = weights_of(tmp_path / "whole", STEPS)
    for name, weight in weights_of(tmp_path / "parts", STEPS).items():
        assert torch.equal(weight, theirs[name]), name
    assert len({r["total_tokens"] for r in whole}) == STEPS


def test_kept_rollouts_have_the_rewards_of_their_phase(tmp_path):
    """Groups get larger and smaller in this run; a truncated response has no reward where it has to stop properly."""
    every = ["--checkpoint.rollouts_per_step", "999"]
    phases = (Phase(1, {"rollout.group_size": 12}), Phase(2, {"rollout.group_size": 4}))
    records = run(tmp_path, *every, phases=phases, shaping=(StopProperly(0.0),))
    kept = [json.loads(line) for line in next(tmp_path.glob("*/rollouts.jsonl")).read_text().splitlines()]
    for record in records:
        mine = [r for r in kept if r["step"] == record["step"]]
        assert mine and all(r["reward"] == 0 for r in mine if r["finish_reason"] == "length")
        assert any(r["reward"] == 1 for r in mine)


def test_a_run_does_not_go_on_with_another_algorithm(tmp_path):
    run(tmp_path, "--steps", "1")
    with pytest.raises(Exception, match=r"reference_reset: .*every_steps.* there, None now"):
        run(tmp_path, "--steps", "2", "--resume", reference_reset=None)
    facts = json.loads(next(tmp_path.glob("*/run.json")).read_text())
    assert facts["algorithm"]["advantages"] is None and facts["config"]["objective.advantage"] == "batch_normalised"


def test_a_bad_constant_of_a_later_phase_is_refused_before_the_first_step_and_on_resume(tmp_path):
    bad = (Phase(3, {"rollout.group_size": 1}),)
    with pytest.raises(ValueError, match=r"phase from step 3 on: --rollout\.group_size must be at least 2"):
        run(tmp_path, phases=bad)
    assert not list(tmp_path.iterdir())
    run(tmp_path, "--steps", "1", phases=())
    with pytest.raises(ValueError, match="phase from step 3 on"):
        run(tmp_path, "--resume", phases=bad)


def test_a_larger_phase_gets_room_in_the_engine_from_the_start(tmp_path):
    from fastgrpo.recipe import find_recipe, load_recipe
    from fastgrpo.recipe.shrink import shrink

    recipe = shrink(load_recipe(find_recipe("prorl_v2_1_5b")))
    assert recipe.algorithm.widest(recipe.config).rollout.max_response_tokens == 96
    seen = []
    with (
        mock.patch("fastgrpo.train._sample", lambda config, role: seen.append(config) or 0),
        mock.patch("fastgrpo.train.Role.of_this_rank", return_value=Role(False, 0, 1, 1)),
    ):
        samples = ["--rollout.engine", "vllm", "--rollout.gpus", "1"]
        assert main(["prorl_v2_1_5b", "--shrink", "--runs_dir", str(tmp_path), *samples]) == 0
    assert seen[0].rollout.max_response_tokens == 96  # of the rank that starts a server, too
    assert replace(recipe.algorithm, phases=()).widest(recipe.config).rollout.max_response_tokens == 48
