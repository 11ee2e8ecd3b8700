"""Responses of groups, counted."""

import numpy as np

from fastgrpo.algorithm.signal_counts import SignalCounts, groups_of
from fastgrpo.types import Prompt, Response, Sample


def sample(reward: float, *, length: int = 4, finish: str = "stop", **known) -> Sample:
    response = Response(np.zeros(length, np.int32), np.zeros(length, np.float32), finish, 0)
    return Sample(Prompt.of_ids(np.zeros(2, np.int32)), response, reward=reward, **known)


def test_a_group_has_signal_where_two_of_its_rewards_differ_whatever_is_right():
    samples = [sample(0.25), sample(0.5), sample(0.25), sample(0.25), sample(1.0, correct=True), sample(1.0)]
    counts = SignalCounts.of(groups_of(samples, 2))
    assert (counts.groups, counts.with_signal, counts.responses, counts.right) == (3, 1, 6, 1)


def test_rewards_differ_between_groups_of_which_none_has_signal():
    counts = SignalCounts.of(groups_of([sample(1.0), sample(1.0), sample(0.0), sample(0.0)], 2))
    assert counts.with_signal == 0 and counts.rewards_differ
    assert not SignalCounts.of(groups_of([sample(1.0)] * 4, 2)).rewards_differ


def test_a_response_without_a_reward_makes_no_signal():
    counts = SignalCounts.of([[sample(1.0), sample(0.0, teaches=False)]])
    assert counts.with_signal == 0 and not counts.rewards_differ and counts.without_reward == 1


def test_boxes_ends_failures_and_tokens_are_counted():
    samples = [
        sample(0.0, boxed=True, length=7),
        sample(0.0, length=1),
        sample(0.0, length=1, finish="length"),
        sample(0.0, failure="timeout", length=9, finish="length"),
    ]
    counts = SignalCounts.of([samples])
    assert (counts.boxed, counts.ended_at_once, counts.cut, counts.failures, counts.tokens) == (1, 1, 2, 1, 18)


def test_of_no_group_all_counts_are_zero():
    counts = SignalCounts.of([])
    assert counts.groups == counts.responses == counts.tokens == 0 and not counts.rewards_differ
