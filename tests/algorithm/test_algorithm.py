"""Phases and what a run records of its algorithm."""

import json
from functools import partial
from typing import Any

import numpy as np
import pytest

from fastgrpo.algorithm import Algorithm, Outcomes, Phase, ReferenceReset
from fastgrpo.algorithm.shaping import Cycled, OverlongPenalty
from fastgrpo.config import Config, with_settings
from fastgrpo.recipe.validate import validate_phases

CONFIG = with_settings(Config(), {"objective.kl_coef": 0.1})
LATER = Algorithm(
    phases=(Phase(10, {"rollout.group_size": 32}), Phase(20, {"rollout.max_response_tokens": 9, "data.train": "x"}))
)


def test_the_settings_of_a_step_are_those_of_the_phases_that_have_begun():
    found = [LATER.config_at(CONFIG, step) for step in (0, 9, 10, 19, 20, 999)]
    assert [c.rollout.group_size for c in found] == [8, 8, 32, 32, 32, 32]
    assert [c.rollout.max_response_tokens for c in found] == [15360] * 4 + [9] * 2
    assert LATER.widest(CONFIG).rollout.max_response_tokens == 15360
    assert found[0] is CONFIG


@pytest.mark.parametrize(
    "make, complaint",
    [
        (lambda: Phase(10, {"model.path": "other"}), "cannot change model.path"),
        (lambda: Phase(0, {"rollout.group_size": 4}), "what holds before is config"),
        (lambda: Phase(5.5, {"rollout.group_size": 4}), "what holds before is config"),
        (lambda: Algorithm(phases=(Phase(9, {}), Phase(9, {}))).configs(CONFIG), "one after the other"),
        (
            lambda: validate_phases(Algorithm(phases=(Phase(10, {"rollout.group_size": 1}),)), CONFIG, 1),
            "phase from step 10 on: --rollout.group_size must be at least 2",
        ),
        (
            lambda: validate_phases(
                LATER,
                with_settings(CONFIG, {"rollout.max_staleness": 1, "rollout.gpus": 1, "rollout.engine": "vllm"}),
                1,
            ),
            "steps overlap",
        ),
        (
            lambda: validate_phases(Algorithm(reference_reset=ReferenceReset(5)), Config(), 1),
            "--objective.kl_coef 0 does not load",
        ),
        (lambda: with_settings(CONFIG, {"rollout.size": 1}), "no setting --rollout.size"),
        (lambda: with_settings(CONFIG, {"rollouts.group_size": 1}), "no setting --rollouts.group_size"),
    ],
)
def test_what_could_not_run_is_refused_before_the_first_step(make, complaint):
    with pytest.raises(ValueError, match=complaint):
        make()


def test_a_reference_is_loaded_if_any_phase_has_a_use_for_it():
    later = Algorithm(phases=(Phase(5, {"objective.kl_coef": 0.5}),))
    assert later.needs_reference(Config()) and not Algorithm().needs_reference(Config())


def test_a_reset_is_due_after_every_so_many_steps():
    assert [s for s in range(10) if ReferenceReset(3).is_due(s)] == [3, 6, 9]


def made(constant: float):
    def inner(rewards, outcomes):
        return rewards * constant

    return inner


def times(rewards, outcomes, constant):
    return rewards * constant


class Judge:
    def __call__(self, rewards, outcomes):
        return rewards


def described(shaping: Any) -> str:
    return json.dumps(Algorithm(shaping=(shaping,)).describe())


def test_what_a_run_records_tells_functions_apart_and_is_always_json():
    kinds = [
        made(1.0), made(2.0), partial(times, constant=2.0), partial(times, constant=3.0),
        lambda r, o: r, lambda r, o: 2 * r,
        OverlongPenalty(4096, np.float32(0.5)), OverlongPenalty(4096, 0.25), Judge(),
    ]  # fmt: skip
    assert len({described(kind) for kind in kinds}) == len(kinds)
    assert described(made(1.0)) == described(made(1.0))


def test_a_function_of_another_signature_is_refused_where_the_recipe_names_it():
    def old(rewards, group_size, lengths):
        return rewards

    with pytest.raises(ValueError, match=r"advantages must take \(rewards, outcomes\), got .*old\(rewards, group_size"):
        Algorithm(advantages=old)
    with pytest.raises(ValueError, match="advantages must take"):
        Algorithm(advantages=lambda rewards, group_size, lengths=None: rewards)
    with pytest.raises(ValueError, match="shaping must take"):
        Algorithm(shaping=(OverlongPenalty(7), lambda rewards: rewards))


def test_a_phase_may_name_what_the_recipe_makes_in_its_run_folder():
    algorithm = Algorithm(phases=(Phase(5, {"data.train": "{run_dir}/base/b.jsonl"}),))
    assert algorithm.config_at(CONFIG, 5).data.train == "runs/run/base/b.jsonl"


@pytest.mark.parametrize(
    "name, value",
    [("rollout.group_size", "32"), ("rollout.zero_signal_groups", "replce"), ("objective.kl_coef", "0"), ("steps", 1.5),
     ("rollout.stop_token_ids", [1]), ("shrink", 1), ("steps", True)],
)  # fmt: skip
def test_a_setting_of_another_type_is_refused(name, value):
    with pytest.raises(ValueError, match=f"--{name} cannot be"):
        with_settings(CONFIG, {name: value})
    assert with_settings(CONFIG, {"reward.unformatted": -1, "objective.kl_coef": 1}).reward.unformatted == -1


@pytest.mark.parametrize(
    "make", [lambda: ReferenceReset(0), lambda: Cycled(OverlongPenalty(), 0, 0), lambda: OverlongPenalty(0)]
)
def test_a_bad_constant_of_a_technique_is_refused_where_it_is_written(make):
    with pytest.raises(ValueError, match="got 0"):
        make()


def test_a_run_records_functions_by_name_and_techniques_by_their_constants():
    def mine(rewards: np.ndarray, outcomes: Outcomes) -> np.ndarray:
        return rewards

    found = Algorithm(advantages=mine, shaping=(Cycled(OverlongPenalty(7), 1, 2),)).describe()
    assert found["advantages"]["is"].endswith("mine") and found["reference_reset"] is None
    inner = {"is": "OverlongPenalty", "buffer_tokens": 7, "factor": 1.0}
    assert found["shaping"] == [{"is": "Cycled", "shaping": inner, "on_steps": 1, "off_steps": 2}]
