"""Each shaping against its published formula, response by response in plain Python."""

import math

import numpy as np
import pytest

from fastgrpo.algorithm import CosineLengthPenalty, Cycled, Outcomes, OverlongPenalty, StopProperly
from fastgrpo.algorithm.shaping import scaled
from tests.tiny import outcomes_of

LIMIT = 15360


def outcomes(lengths: list[int], step: int = 0) -> Outcomes:
    many = np.array(lengths)
    return outcomes_of(many % 2 == 0, many, many == LIMIT, LIMIT, group_size=1, step=step)


def test_the_overlong_penalty_is_none_up_to_the_buffer_and_linear_to_the_limit():
    lengths = [1, 11264, 11265, 13312, 15359, 15360]
    rewards = np.ones(6)
    expected = [1 + min(-(n - (LIMIT - 4096)) / 4096 * 1.0, 0) for n in lengths]  # verl: reward_manager/dapo.py
    assert OverlongPenalty()(rewards, outcomes(lengths)) == pytest.approx(expected)
    assert expected[:2] == [1, 1] and expected[-1] == 0  # a truncated wrong response has -2 where a wrong one has -1


def test_the_cosine_penalty_falls_from_its_high_to_its_low_value():
    lengths = [0, 7680, LIMIT]
    found = CosineLengthPenalty(high=0.2, low=-0.6)(np.zeros(3), outcomes(lengths))
    assert found == pytest.approx([-0.6 + 0.4 * (1 + math.cos(math.pi * n / LIMIT)) for n in lengths])
    assert found == pytest.approx([0.2, -0.2, -0.6])


def test_a_cycle_is_on_and_then_off():
    cycle = Cycled(CosineLengthPenalty(), on_steps=2, off_steps=3)
    changed = [bool((cycle(np.zeros(1), outcomes([LIMIT], step)) != 0).all()) for step in range(10)]
    assert changed == [True, True, False, False, False] * 2


def test_a_truncated_response_keeps_a_share_of_its_reward():
    assert StopProperly(0.25)(np.array([1.0, 1.0]), outcomes([5, LIMIT])).tolist() == [1.0, 0.25]
    assert StopProperly(0.0)(np.array([-1.0, -1.0]), outcomes([5, LIMIT])).tolist() == [-1.0, -1.0]


def test_what_is_long_is_scaled_with_the_run():
    assert scaled(OverlongPenalty(4096), 1 / 1024, 1.0) == OverlongPenalty(4)
    cycle = scaled(Cycled(OverlongPenalty(4096), 100, 500), 1 / 1024, 0.01)
    assert cycle == Cycled(OverlongPenalty(4), 1, 5)
    assert scaled(StopProperly(), 0.1, 0.1) == StopProperly()
