"""Groups from an engine that draws them to their end, or only as many as a step needs."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgrpo.json_lines import JsonLines
from fastgrpo.rollout.generate import generate
from fastgrpo.rollout.local_rollouts import LocalRollouts
from fastgrpo.rollout.prompts_in_order import PromptsInOrder
from fastgrpo.types import Prompt, Request, Response, Sampling

SAMPLING = Sampling(group_size=2, max_response_tokens=4)


class FakeEngine:
    """Finishes one response a step, in the order that it was told."""

    def __init__(self, order: list[int]) -> None:
        self.order, self.held, self.cancelled = order, {}, set()
        self.num_steps = 0

    def submit(self, requests: list[Request]) -> None:
        self.held = {r.id: r for r in requests}
        self.order = sorted(self.held, key=lambda i: self.order[i % len(self.order)])

    def step(self) -> list[tuple[int, Response]]:
        self.num_steps += 1
        request = self.held.pop(self.order.pop(0))
        ids = np.array([request.prompt.position, request.index], np.int32)
        return [(request.id, Response(ids, np.zeros(2, np.float32), "stop", 0))]

    def cancel(self, ids) -> None:
        self.cancelled |= set(ids)

    def is_unfinished(self) -> bool:
        return bool(self.held)


def prompts(positions) -> list[Prompt]:
    return [Prompt.of_ids(np.zeros(1, np.int32), p) for p in positions]


def positions(groups) -> list[int]:
    for group in groups:
        assert [s.response.response_ids.tolist() for s in group] == [[group[0].prompt.position, k] for k in range(2)]
    return [g[0].prompt.position for g in groups]


orders = st.lists(st.integers(0, 100), min_size=1, max_size=24)


@settings(deadline=None)
@given(st.integers(0, 12), orders)
def test_all_groups_come_in_the_order_of_their_prompts(count, order):
    assert positions(generate(FakeEngine(order), prompts(range(count)), SAMPLING)) == list(range(count))


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(0, 12), st.sets(st.integers(0, 11)), orders)
def test_of_more_prompts_the_first_that_are_complete_come_and_those_waited_for_among_them(count, wanted, must, order):
    wanted, engine = min(wanted, count), FakeEngine(order)
    got = positions(generate(engine, prompts(range(count)), SAMPLING, wanted, must))
    awaited = [p for p in range(count) if p in must][:wanted]
    assert len(got) == wanted and got == sorted(got) and set(awaited) <= set(got)
    assert engine.cancelled == set(engine.held)  # what is not drawn to its end is forgotten


def test_every_response_is_handed_on_when_it_is_finished():
    engine, told = FakeEngine([5, 3, 4, 0, 2, 1]), []
    groups = generate(
        engine,
        prompts([7, 8, 9]),
        SAMPLING,
        2,
        on_finished=lambda *finished: told.append((*finished, engine.num_steps)),
    )
    assert [(r.prompt.position, r.index, step) for r, _, step in told] == [(8, 1, 1), (9, 1, 2), (9, 0, 3), (7, 1, 4),
                                                                           (8, 0, 5)]  # fmt: skip
    handed = {(r.prompt.position, r.index): response for r, response, _ in told}
    assert all(s.response is handed[g[0].prompt.position, k] for g in groups for k, s in enumerate(g))


def test_nothing_more_is_drawn_once_enough_groups_are_complete():
    engine = FakeEngine(list(range(8)))
    assert positions(generate(engine, prompts(range(4)), SAMPLING, 1)) == [0]
    assert engine.num_steps == 2
    engine = FakeEngine(list(range(8)))
    assert positions(generate(engine, prompts(range(4)), SAMPLING, 1, must={2})) == [2]
    assert engine.num_steps == 6


class Stream:
    def prompts_at(self, start: int, count: int) -> list[Prompt]:
        return prompts(range(start, start + count))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.sets(st.integers(0, 8))), max_size=12))
def test_every_prompt_is_handed_out_once_and_once_more_for_each_time_it_is_put_back(steps):
    order, used = PromptsInOrder(Stream()), []
    for count, returned in steps:
        expected = order.put_back[:count]
        taken = [p.position for p in order.take(count)]
        assert len(taken) == count and taken[: len(expected)] == expected
        back = [p for i, p in enumerate(taken) if i in returned]
        order.give_back(back)
        used += [p for p in taken if p not in back]
    resumed = PromptsInOrder(Stream())
    resumed.load_state(order.state())
    assert [p.position for p in resumed.take(5)] == [p.position for p in order.take(5)]
    assert len(used) == len(set(used))


@pytest.mark.parametrize("oversample", ["1.5", "3"])
def test_prompts_put_back_come_first_and_every_prompt_is_trained_on_once(train, monkeypatch, oversample):
    """Positions of every step of a run, and of one that was continued in its middle."""
    from fastgrpo.rollout.local_rollouts import LocalRollouts

    taken: list[list[int]] = []
    awaited: list[list[int]] = []
    take = LocalRollouts.take

    def noted(self, num_groups):
        awaited.append(self.prompts.put_back[:num_groups])
        groups = take(self, num_groups)
        taken.append([g[0].prompt.position for g in groups])
        return groups

    monkeypatch.setattr(LocalRollouts, "take", noted)
    settings = ["--rollout.oversample", oversample, "--data.held_out", "", "--rollout.max_sequences", "12"]
    assert train(*settings, "--steps", "6") == 0
    assert any(awaited)
    for expected, got in zip(awaited, taken, strict=True):
        assert set(expected) <= set(got) and len(got) == 8
    flat = [p for step in taken for p in step]
    assert len(flat) == len(set(flat)) == 48
    records = [r for r in JsonLines(train.folder / "metrics.jsonl").read() if r["step"] > 0]
    assert all(r["prompts_started"] == r["groups_kept"] + r["prompts_put_back"] for r in records)

    whole, folder = list(taken), train.folder
    taken.clear()
    shutil.rmtree(folder / "checkpoints")
    assert train(*settings, "--steps", "2", "--overwrite") == 0
    assert train(*settings, "--steps", "6", "--resume") == 0
    assert taken == whole


class Noted:
    """Notes what is begun and not forgotten."""

    def __init__(self) -> None:
        self.begun: set[tuple[int, int]] = set()

    def begin(self, request, response) -> None:
        assert (request.prompt.position, request.index) not in self.begun
        self.begun.add((request.prompt.position, request.index))

    def forget(self, positions, sampling) -> None:
        assert sampling == SAMPLING
        self.begun = {place for place in self.begun if place[0] not in positions}


@pytest.mark.parametrize("tensor_parallel", [1, 2])
@pytest.mark.parametrize("oversample", [1.0, 1.5])
def test_a_rank_judges_what_it_gets_and_forgets_what_is_put_back(oversample, tensor_parallel):
    for num_groups in range(1, 10):
        taken = []
        for rank in range(2):
            ranks = SimpleNamespace(rank=rank, count=2, gather=list)
            rollouts = LocalRollouts(
                FakeEngine([3, 1, 2]), ranks, PromptsInOrder(Stream()), SAMPLING, dict, None,
                tensor_parallel=tensor_parallel, oversample=oversample,
            )  # fmt: skip
            rollouts.judging = Noted()
            rollouts.begin_step(0)
            groups = rollouts.take(num_groups)
            assert rollouts.judging.begun == {(p, k) for p in positions(groups) for k in range(2)}
            taken += positions(groups)
        assert len(taken) == len(set(taken)) == num_groups


@pytest.mark.parametrize("oversample", [1.0, 1.05, 1.5, 3.0])
def test_the_ranks_have_all_groups_together_whatever_their_number(oversample):
    for num_ranks in range(1, 9):
        for num_groups in range(1, 20):
            taken = []
            for rank in range(num_ranks):
                ranks = SimpleNamespace(rank=rank, count=num_ranks, gather=list)
                stream = SimpleNamespace(prompts_at=lambda start, count: prompts(range(start, start + count)))
                rollouts = LocalRollouts(
                    FakeEngine([1]), ranks, PromptsInOrder(stream), SAMPLING, dict, None, oversample=oversample
                )
                rollouts.begin_step(0)
                taken += positions(rollouts.take(num_groups))
            assert len(taken) == len(set(taken)) == num_groups
