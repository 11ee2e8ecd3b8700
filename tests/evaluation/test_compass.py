"""The verifier model: which responses it is asked about, in which words, and what its reply does."""

from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from fastgrpo.data import load_tokenizer
from fastgrpo.evaluation import compass, sampler
from fastgrpo.evaluation.records import read_evaluation
from fastgrpo.ranks.signals import Interrupted
from fastgrpo.types import Request, Response
from tests.evaluation.replier import replier
from tests.evaluation.running import evaluate, rows


@pytest.fixture(scope="module")
def yes(tiny_base, tmp_path_factory) -> str:
    return replier(tiny_base, tmp_path_factory.mktemp("yes"), "A")


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """The words of every request to a verifier model."""
    noted: list[str] = []
    encode = compass.prompt_ids

    def note(tokenizer, texts, chat_template):
        noted.extend(texts)
        assert chat_template
        return encode(tokenizer, texts, chat_template)

    monkeypatch.setattr(compass, "prompt_ids", note)
    return noted


def test_what_the_rule_rejects_is_asked_about_and_a_yes_makes_it_right(yes, tiny_base, tmp_path, asked):
    assert evaluate(tiny_base, tmp_path, "--problems", "4") == 0  # the rule alone
    folder = tmp_path / "e"
    by_rule = {(v["problem"], v["sample"]): v["rule"] for v in rows(folder, "verdicts")}
    assert not all(by_rule.values())
    assert evaluate(tiny_base, tmp_path, "--problems", "4", "--verifier_model", yes) == 0
    last = {(v["problem"], v["sample"]): v for v in rows(folder, "verdicts")}
    assert {key: v["rule"] for key, v in last.items()} == by_rule
    assert all(v["model"] is (None if v["rule"] else True) for v in last.values())
    assert {v["reply"] for v in last.values() if not v["rule"]} == {"A"}
    [results] = read_evaluation(folder).benchmarks
    assert results.outcomes().all() and len(results.judged) == 8
    assert len(asked) == sum(not right for right in by_rule.values())
    texts = {(r["problem"], r["sample"]): r["text"] for r in rows(folder, "generations")}
    problems = {p.problem: p for p in results.problems}
    for (problem, sample), words in zip([k for k, right in by_rule.items() if not right], asked, strict=True):
        assert f"<Original Question Begin>:\n{problems[problem].text}\n<Original Question End>" in words
        assert f"<Standard Answer Begin>:\n{problems[problem].answer}\n" in words
        assert f"<Candidate's Answer Begin>: \n{texts[problem, sample]}\n" in words


class EvenLengths:
    """An engine that reads what it is given as engines do, one prompt for each position, and says "A" of responses with
    an even number of characters."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer, self.prompts, self.requests = tokenizer, {}, []

    def submit(self, requests: list[Request]) -> None:
        self.requests += requests
        for request in requests:
            self.prompts.setdefault(request.prompt.position, request.prompt.prompt_ids)

    def step(self) -> list[tuple[int, Response]]:
        request = self.requests.pop()
        words = self.tokenizer.decode(self.prompts[request.prompt.position])
        response = words.split("<Candidate's Answer Begin>: \n")[1].split("\n<Candidate's Answer End>")[0]
        ids = self.tokenizer("BA"[len(response) % 2 == 0])["input_ids"]
        return [(request.id, Response(np.array(ids, np.int32), np.zeros(1, np.float32), "stop", 0))]

    def is_unfinished(self) -> bool:
        return bool(self.requests)

    def close(self) -> None:
        pass


def test_each_response_is_judged_by_its_own_reply(yes, tiny_base, tmp_path, monkeypatch):
    settings = ("--rule", NEVER, "--samples", "4")
    assert evaluate(tiny_base, tmp_path, *settings) == 0
    engine = EvenLengths(load_tokenizer(yes))
    monkeypatch.setattr(sampler, "start_engine", lambda spec: engine)
    assert evaluate(tiny_base, tmp_path, *settings, "--verifier_model", yes) == 0
    [results] = read_evaluation(tmp_path / "e").benchmarks
    assert [j.correct for j in results.judged] == [len(j.text) % 2 == 0 for j in results.judged]
    assert 0 < sum(j.correct for j in results.judged) < 64
    assert any(len(set(row)) > 1 for row in results.outcomes().tolist())  # two responses to one problem


@pytest.mark.slow
@pytest.mark.parametrize("reply", [("B",), ("A", "A"), ("A", "B")])
def test_any_reply_but_the_one_letter_leaves_it_wrong(tiny_base, tmp_path, reply):
    model = replier(tiny_base, tmp_path / "model", *reply)
    assert evaluate(tiny_base, tmp_path, "--problems", "2", "--verifier_model", model, "--rule", NEVER) == 0
    judged = rows(tmp_path / "e", "verdicts")
    assert [v["model"] for v in judged if "reply" in v] == [False] * 4
    assert not read_evaluation(tmp_path / "e").benchmarks[0].outcomes().any()


NEVER = f"{Path(__file__).parent / 'never.py'}:never"


def test_the_published_slip_leaves_the_question_out(yes, tiny_base, tmp_path, asked):
    settings = ("--problems", "2", "--rule", NEVER, "--verifier_model", yes)
    assert evaluate(tiny_base, tmp_path, *settings, "--compass_without_question") == 0
    assert len(asked) == 4 and all("Question Begin>:\n\n<Original Question End>" in words for words in asked)


@pytest.mark.slow
def test_replies_that_are_there_are_not_asked_for_again(yes, tiny_base, tmp_path, monkeypatch):
    settings = ("--problems", "4", "--rule", NEVER, "--verifier_model", yes)
    draw, counts = compass.draw, []

    def stopped(config, device, tokenizer, asked, take, check):
        counts.append(len(asked))

        def take_three(drawn):
            take(drawn)
            taken.append(drawn)
            if len(taken) == 3:
                raise Interrupted("a signal")

        taken: list = []
        draw(config, device, tokenizer, asked, take_three, check)

    monkeypatch.setattr(compass, "draw", stopped)
    assert evaluate(tiny_base, tmp_path, *settings) == 75
    assert evaluate(tiny_base, tmp_path, *settings) == 75
    monkeypatch.setattr(compass, "draw", draw)
    assert evaluate(tiny_base, tmp_path, *settings) == 0
    assert counts == [8, 5]
    assert read_evaluation(tmp_path / "e").benchmarks[0].outcomes().all()


@pytest.mark.slow
def test_a_response_that_is_too_long_to_be_read_stays_wrong_and_says_why(tiny_base, tmp_path):
    model = replier(tiny_base, tmp_path / "model", "A", positions=64)
    assert evaluate(tiny_base, tmp_path, "--problems", "2", "--rule", NEVER, "--verifier_model", model) == 0
    judged = [v for v in rows(tmp_path / "e", "verdicts") if v["model"] is not None]
    assert [(v["model"], v["failure"]) for v in judged] == [(False, "too_long")] * 4


def test_a_reply_may_be_as_long_as_published_where_there_is_room_and_short_where_there_is_not():
    assert compass.MAX_REPLY_TOKENS == 2048  # evals/grade.py
    assert [compass._reply_tokens(room) for room in (9999, 2048, 2047, 16, 15, -5)] == [2048, 2048, 16, 16, 0, 0]


@pytest.mark.slow
def test_another_verifier_model_does_not_go_on_in_a_folder(yes, tiny_base, tmp_path, capsys):
    assert evaluate(tiny_base, tmp_path, "--problems", "1", "--verifier_model", yes) == 0
    assert evaluate(tiny_base, tmp_path, "--problems", "1") == 2
    assert "verifier_model" in capsys.readouterr().err
    assert evaluate(tiny_base, tmp_path, "--problems", "1", "--verifier_model", str(tmp_path / "none")) == 2


def test_a_verifier_model_that_is_not_there_is_refused_before_anything_is_drawn(tiny_base, tmp_path, capsys):
    assert evaluate(tiny_base, tmp_path, "--verifier_model", str(tmp_path / "none")) == 2
    assert "config.json" in capsys.readouterr().err
    assert not (tmp_path / "e").exists()
