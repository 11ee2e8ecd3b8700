"""Judging while responses are being drawn: who is asked when, and that nothing is asked twice, lost or mixed up."""

import time
from concurrent.futures import Future

import numpy as np
import pytest

from fastgrpo.algorithm.judging import Judging
from fastgrpo.json_lines import JsonLines
from fastgrpo.rewards import Signature, Verdict, VerifierPool
from fastgrpo.rollout.generate import generate, requests_of
from fastgrpo.types import Prompt, Request, Response, Sample, Sampling

SAMPLING = Sampling(group_size=3, max_response_tokens=4)
OF_A_GROUP = Signature(frozenset({"group"}))


class Tokenizer:
    def batch_decode(self, ids, *, skip_special_tokens):
        assert skip_special_tokens
        return [" ".join(map(str, each)) for each in ids]


class Pool:
    """Notes what it is asked; a response is right if its text ends with its answer."""

    holds = False  # whether verdicts stay away

    def __init__(self, signature: Signature | None = None) -> None:
        self.signature = signature or Signature()
        self.asked: list[list[str]] = []
        self.futures: list[Future] = []

    def submit(self, items):
        self.asked.append([item.response for item in items])
        self.futures.append(Future())
        if not self.holds:
            self.futures[-1].set_result([Verdict(item.response.endswith(item.answer)) for item in items])
        return self.futures[-1]


def requests(position: int = 0, sampling: Sampling = SAMPLING) -> list[Request]:
    return requests_of([Prompt(row=0, text="?", answer="7", position=position)], sampling)


def response(*ids: int) -> Response:
    return Response(np.array(ids, np.int32), np.zeros(len(ids), np.float32), "stop", 0)


def group_of(asked: list[Request], responses: list[Response]) -> list[Sample]:
    return [Sample(r.prompt, drawn) for r, drawn in zip(asked, responses, strict=True)]


def judging_of(pool: Pool) -> Judging:
    return Judging(Tokenizer(), pool)


def test_a_response_is_asked_about_when_it_is_finished_and_once():
    pool, drawn = Pool(), [response(1, 7), response(2), response(7)]
    judging, asked = judging_of(pool), requests()
    for n in (2, 0, 1):
        judging.begin(asked[n], drawn[n])
    assert pool.asked == [["7"], ["1 7"], ["2"]]
    [judged] = judging.judged([group_of(asked, drawn)], SAMPLING, 1.0)
    assert [(s.text, s.correct) for s in judged] == [("1 7", True), ("2", False), ("7", True)]
    assert len(pool.asked) == 3 and judging.num_open == 0


def test_a_reward_that_wants_the_group_is_asked_when_it_is_whole_in_the_groups_order():
    pool, drawn = Pool(OF_A_GROUP), [response(1, 7), response(2), response(7)]
    judging, asked = judging_of(pool), requests()
    for n in (2, 0):
        judging.begin(asked[n], drawn[n])
    assert pool.asked == []
    judging.begin(asked[1], drawn[1])
    assert pool.asked == [["1 7", "2", "7"]]
    [judged] = judging.judged([group_of(asked, drawn)], SAMPLING, 1.0)
    assert [s.correct for s in judged] == [True, False, True]
    assert len(pool.asked) == 1


@pytest.mark.parametrize("signature", [Signature(), OF_A_GROUP])
def test_what_nobody_has_asked_about_is_asked_when_it_is_needed(signature):
    """As after a checkpoint, which keeps responses and no verdicts."""
    pool, drawn = Pool(signature), [response(1, 7), response(2), response(7)]
    judging, asked = judging_of(pool), requests()
    judging.begin(asked[1], drawn[1])
    [judged] = judging.judged([group_of(asked, drawn)], SAMPLING, 1.0)
    assert [(s.text, s.correct) for s in judged] == [("1 7", True), ("2", False), ("7", True)]
    assert pool.asked == ([["1 7", "2", "7"]] if signature.waits_for_group else [["2"], ["1 7", "7"]])
    assert judging.num_open == 0


def test_what_is_thrown_away_is_cancelled_and_its_successor_judged_anew():
    pool = Pool()
    pool.holds = True
    judging, asked = judging_of(pool), requests(5)
    for request in asked[:2]:
        judging.begin(request, response(7))
    judging.forget([4, 5, 6], SAMPLING)
    assert all(future.cancelled() for future in pool.futures) and judging.num_open == 0
    judging.begin(asked[0], response(7))
    judging.close()
    assert all(future.cancelled() for future in pool.futures) and judging.num_open == 0
    pool.holds = False
    drawn = [response(n) for n in range(3)]
    for request, its in zip(asked, drawn, strict=True):
        judging.begin(request, its)
    [judged] = judging.judged([group_of(asked, drawn)], SAMPLING, 1.0)
    assert [s.correct for s in judged] == [False] * 3


def test_another_response_in_the_same_place_does_not_get_the_verdict_of_the_first():
    pool, asked = Pool(), requests()
    judging = judging_of(pool)
    for request in asked:
        judging.begin(request, response(7))
    [judged] = judging.judged([group_of(asked, [response(1), response(2), response(3)])], SAMPLING, 1.0)
    assert [s.correct for s in judged] == [False] * 3


def test_training_and_evaluation_of_one_prompt_do_not_mix():
    evaluation = Sampling(group_size=1, max_response_tokens=4, seed=1)
    pool = Pool(OF_A_GROUP)
    judging, asked, [other] = judging_of(pool), requests(), requests(0, evaluation)
    drawn, its = [response(n) for n in range(3)], response(7)
    judging.begin(asked[0], drawn[0])
    judging.begin(other, its)
    judging.begin(asked[1], drawn[1])
    judging.begin(asked[2], drawn[2])
    [[judged]] = judging.judged([group_of([other], [its])], evaluation, 1.0)
    assert judged.correct and pool.asked == [["7"], ["0", "1", "2"]]


def test_an_error_is_raised_where_the_verdict_is_needed():
    class Closed(Pool):
        def submit(self, items):
            raise RuntimeError("this VerifierPool is closed")

    judging, asked, drawn = judging_of(Closed()), requests(), [response(n) for n in range(3)]
    for request, its in zip(asked, drawn, strict=True):
        judging.begin(request, its)
    with pytest.raises(RuntimeError, match="closed"):
        judging.judged([group_of(asked, drawn)], SAMPLING, 1.0)


REWARD = """
from pathlib import Path

def reward(response, answer):
    (Path({folder!r}) / response.replace(" ", "_")).touch()
    return response.endswith(answer)
"""


def test_a_response_is_judged_while_the_others_are_still_being_drawn(tmp_path):
    """The engine gives a response only when the one before it has been judged."""

    class Engine:
        held: list[Request]

        def submit(self, asked):
            self.held = list(asked)

        def is_unfinished(self):
            return bool(self.held)

        def cancel(self, ids):
            pass

        def step(self):
            request = self.held.pop(0)
            end = time.monotonic() + 30
            while request.id and not (tmp_path / f"{request.id - 1}_7").exists():
                assert time.monotonic() < end, "the response before it was not judged"
                time.sleep(0.01)
            return [(request.id, response(request.id, 7))]

    path = tmp_path / "recipe.py"
    path.write_text(REWARD.format(folder=str(tmp_path)))
    prompts = [requests(position)[0].prompt for position in range(2)]
    with VerifierPool(f"{path}:reward", 1, timeout_s=20, memory_limit_gib=1, self_test=[]) as pool:
        judging = Judging(Tokenizer(), pool)
        groups = generate(Engine(), prompts, SAMPLING, on_finished=judging.begin)
        judged = judging.judged(groups, SAMPLING, 1.0)
    assert [s.text for group in judged for s in group] == [f"{n} 7" for n in range(6)]
    assert all(s.correct for group in judged for s in group)


def test_a_run_that_judges_early_has_the_figures_of_one_that_judges_late(train, monkeypatch):
    judged, left = Judging.judged, []

    def noted(self, groups, sampling, right_from):
        found = judged(self, groups, sampling, right_from)
        left.append(self.num_open)
        return found

    def figures() -> list[dict]:
        records = JsonLines(train.folder / "metrics.jsonl").read()
        return [{k: v for k, v in r.items() if not k.endswith("_s")} for r in records]

    monkeypatch.setattr(Judging, "judged", noted)
    settings = ["--steps", "3", "--rollout.oversample", "1.5", "--rollout.zero_signal_groups", "replace"]
    settings += ["--rollout.max_sequences", "12", "--evaluation.every_steps", "3"]
    assert train(*settings) == 0
    early = figures()
    assert any(r.get("prompts_put_back") for r in early) and set(left) == {0}
    monkeypatch.setattr(Judging, "begin", lambda self, request, response: None)
    assert train(*settings, "--overwrite") == 0
    assert figures() == early
