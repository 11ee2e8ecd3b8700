"""Whatever the servers' speed, no group trains weights that are too far ahead of it, and none is lost."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgrpo.rollout.servers.staleness import StalenessQueue
from fastgrpo.types import Prompt, Response

GROUP_SIZE = 2


def prompt(position: int) -> Prompt:
    return Prompt.of_ids(np.zeros(1, np.int32), position)


def response() -> Response:
    return Response(np.zeros(1, np.int32), np.zeros(1, np.float32), "stop", 0)


class Run:
    """The trainer's loop around a queue, with servers that finish responses in any order."""

    def __init__(self, per_step: int, max_staleness: int, chance: random.Random, oversample: float = 1.0) -> None:
        self.queue = StalenessQueue(per_step, max_staleness, GROUP_SIZE)
        self.per_step, self.max_staleness, self.chance = per_step, max_staleness, chance
        self.oversample = oversample
        self.next_position = 0
        self.put_back: list[int] = []
        self.drawing: list[tuple[int, int]] = []  # (position, sample) that no server has finished
        self.version: dict[int, int] = {}  # of the weights when a group was started, the last time
        self.taken: list[int] = []
        self.staleness: list[int] = []

    def start(self, num_missing: int) -> None:
        count = self.queue.num_to_start(int(num_missing * self.oversample))
        again, self.put_back = self.put_back[:count], self.put_back[count:]
        fresh = range(self.next_position, self.next_position + count - len(again))
        self.next_position = fresh.stop
        for position in (*again, *fresh):
            self.queue.start(prompt(position), again=position in again)
            self.version[position] = self.queue.step
            self.drawing += [(position, k) for k in range(GROUP_SIZE)]
        most = int((self.max_staleness * self.per_step + num_missing) * max(1.0, self.oversample))
        assert len(self.queue.started) <= max(most, (self.max_staleness + 1) * self.per_step)

    def finish_one(self) -> None:
        assert self.drawing, "the step waits for what nobody draws"
        position, sample = self.drawing.pop(self.chance.randrange(len(self.drawing)))
        assert self.queue.finish(position, sample, response())

    def take(self, num_groups: int) -> None:
        """As ServerRollouts.take: asks again after every response."""
        if self.queue.num_to_start(num_groups) > 0 and len(self.queue.started) < num_groups:
            self.start(num_groups)
        for _ in range(self.chance.randrange(len(self.drawing) + 1)):
            self.finish_one()
        while (groups := self.queue.take(num_groups)) is None:
            self.finish_one()
        assert len(groups) == num_groups
        for group in groups:
            self.taken.append(group[0].prompt.position)
            self.staleness.append(self.queue.step - self.version[group[0].prompt.position])

    def step(self, number: int, rounds: list[int]) -> None:
        self.queue.step = number
        self.start(self.per_step)
        for num_groups in (self.per_step, *rounds):
            self.take(num_groups)
        if self.max_staleness == 0:  # as publish
            self.put_back = sorted({*self.put_back, *self.queue.put_back()})
            self.drawing.clear()
        elif self.max_staleness == 1:
            while self.drawing:
                self.finish_one()


rounds_of_steps = st.lists(st.lists(st.integers(1, 6), max_size=3), min_size=1, max_size=14)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 4), st.integers(1, 6), rounds_of_steps, st.integers(0, 2**32))
def test_no_group_is_taken_later_than_the_staleness_allows_nor_lost_nor_taken_twice(
    max_staleness, per_step, steps, seed
):
    """With further rounds in a step, as replacement asks for them; a step that never ends would fail in finish_one."""
    run = Run(per_step, max_staleness, random.Random(seed))
    for number, rounds in enumerate(steps):
        run.step(number, [min(r, per_step) for r in rounds])
        assert max(run.staleness) <= max_staleness
    assert len(run.taken) == len(set(run.taken))
    assert {*run.taken, *run.queue.started, *run.put_back} == set(range(run.next_position))


@settings(max_examples=200, deadline=None)
@given(st.floats(1.0, 4.0), st.integers(1, 6), rounds_of_steps, st.integers(0, 2**32))
def test_prompts_put_back_are_taken_in_their_order_and_nothing_is_lost(oversample, per_step, steps, seed):
    run = Run(per_step, 0, random.Random(seed), oversample)
    for number, rounds in enumerate(steps):
        expected = run.put_back[:per_step]
        already = len(run.taken)
        run.step(number, [min(r, per_step) for r in rounds])
        assert set(expected) <= set(run.taken[already : already + per_step])
    assert max(run.staleness) == 0
    assert len(run.taken) == len(set(run.taken))
    assert {*run.taken, *run.put_back} == set(range(run.next_position))


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 6), rounds_of_steps, st.integers(0, 2**32), st.integers(0, 2**32))
def test_with_staleness_1_what_a_step_takes_does_not_depend_on_who_is_faster(per_step, steps, seed, other):
    runs = [Run(per_step, 1, random.Random(s)) for s in (seed, other)]
    for run in runs:
        for number, rounds in enumerate(steps):
            run.step(number, [min(r, per_step) for r in rounds])
    assert runs[0].taken == runs[1].taken


def test_a_response_drawn_twice_counts_once_and_one_that_nobody_asked_for_never():
    queue = StalenessQueue(1, 0, GROUP_SIZE)
    queue.start(prompt(7))
    assert queue.finish(7, 0, response())
    assert not queue.finish(7, 0, response())
    assert not queue.finish(8, 0, response())
    assert queue.take(1) is None
    assert queue.finish(7, 1, response())
    assert [g[0].prompt.position for g in queue.take(1)] == [7]
    assert not queue.finish(7, 1, response())


def test_a_prompt_cannot_be_under_way_twice():
    queue = StalenessQueue(2, 0, GROUP_SIZE)
    queue.start(prompt(7))
    with pytest.raises(AssertionError, match="prompt 7 is under way"):
        queue.start(prompt(7))
