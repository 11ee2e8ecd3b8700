"""The verifier model: which responses it is asked about, in which words, and what its reply does."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

from fastgrpo.data import load_tokenizer
from fastgrpo.evaluation import compass
from fastgrpo.evaluation.interrupts import Interrupted
from fastgrpo.evaluation.records import read_evaluation
from tests.evaluation.running import evaluate, rows

MARGIN = 4.0


def replier(base: Path, folder: Path, *reply: str, positions: int = 16384) -> str:
    """A model that answers every chat with this text, whatever it reads: its layers add nothing, and its head finds
    for each token of the reply the one before it."""
    tokenizer = load_tokenizer(str(base / "model"))
    end = tokenizer.eos_token_id
    shape = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=positions, tie_word_embeddings=False, eos_token_id=end,
        pad_token_id=end, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(shape)
    ids = [*(tokenizer.convert_tokens_to_ids(token) for token in ("<|assistant|>", *reply)), end]
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_()
        model.lm_head.weight.zero_()
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        for before, after in pairwise(ids):
            model.lm_head.weight[after] = MARGIN * model.model.embed_tokens.weight[before]
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=end)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


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


def test_replies_that_are_there_are_not_asked_for_again(yes, tiny_base, tmp_path, monkeypatch):
    settings = ("--problems", "4", "--rule", NEVER, "--verifier_model", yes)
    draw, counts = compass.draw, []

    def stopped(settings, config, device, tokenizer, asked, take, check):
        counts.append(len(asked))

        def take_three(drawn):
            take(drawn)
            taken.append(drawn)
            if len(taken) == 3:
                raise Interrupted("a signal")

        taken: list = []
        draw(settings, config, device, tokenizer, asked, take_three, check)

    monkeypatch.setattr(compass, "draw", stopped)
    assert evaluate(tiny_base, tmp_path, *settings) == 75
    assert evaluate(tiny_base, tmp_path, *settings) == 75
    monkeypatch.setattr(compass, "draw", draw)
    assert evaluate(tiny_base, tmp_path, *settings) == 0
    assert counts == [8, 5]
    assert read_evaluation(tmp_path / "e").benchmarks[0].outcomes().all()


def test_a_response_that_is_too_long_to_be_read_stays_wrong_and_says_why(tiny_base, tmp_path):
    model = replier(tiny_base, tmp_path / "model", "A", positions=64)
    assert evaluate(tiny_base, tmp_path, "--problems", "2", "--rule", NEVER, "--verifier_model", model) == 0
    judged = [v for v in rows(tmp_path / "e", "verdicts") if v["model"] is not None]
    assert [(v["model"], v["failure"]) for v in judged] == [(False, "too_long")] * 4


def test_a_reply_may_be_as_long_as_published_where_there_is_room_and_short_where_there_is_not():
    assert compass.MAX_REPLY_TOKENS == 2048  # evals/grade.py
    assert [compass._reply_tokens(room) for room in (9999, 2048, 2047, 16, 15, -5)] == [2048, 2048, 16, 16, 0, 0]


def test_another_verifier_model_does_not_go_on_in_a_folder(yes, tiny_base, tmp_path, capsys):
    assert evaluate(tiny_base, tmp_path, "--problems", "1", "--verifier_model", yes) == 0
    assert evaluate(tiny_base, tmp_path, "--problems", "1") == 2
    assert "verifier_model" in capsys.readouterr().err
    assert evaluate(tiny_base, tmp_path, "--problems", "1", "--verifier_model", str(tmp_path / "none")) == 2


def test_a_verifier_model_that_is_not_there_is_refused_before_anything_is_drawn(tiny_base, tmp_path, capsys):
    assert evaluate(tiny_base, tmp_path, "--verifier_model", str(tmp_path / "none")) == 2
    assert "config.json" in capsys.readouterr().err
    assert not (tmp_path / "e").exists()
