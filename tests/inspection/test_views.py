"""What is shown of prompts and responses."""

import numpy as np
import pytest

from fastgrpo.data import load_tokenizer
from fastgrpo.inspection.answers_view import group_lines, shortened, verdict_of
from fastgrpo.inspection.prompt_view import marked_ids, marked_text, stop_lines
from fastgrpo.types import Prompt, Response, Sample


@pytest.fixture(scope="module")
def tokenizer(tiny_base):
    return load_tokenizer(str(tiny_base / "model"))


def sample(length=3, finish="stop", **known) -> Sample:
    response = Response(np.zeros(length, np.int32), np.zeros(length, np.float32), finish, 0)
    return Sample(Prompt(0, "What is six times seven?", "42"), response, **known)


def test_special_tokens_of_a_prompt_are_in_brackets_and_its_text_is_whole(tokenizer):
    text = "<|user|>12+34=? Say [it].\nAnswer in \\boxed{}.<|assistant|>"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    shown = marked_text(ids, tokenizer)
    assert shown.plain == "[<|user|>]12+34=? Say [it].\nAnswer in \\boxed{}.[<|assistant|>]"
    assert [shown.plain[s.start : s.end] for s in shown.spans] == ["[<|user|>]", "[<|assistant|>]"]
    user, *middle, assistant = ids
    assert marked_ids(ids, tokenizer).plain == f"[{user}] {' '.join(map(str, middle))} [{assistant}]"


def test_of_a_long_prompt_the_ids_in_the_middle_are_left_out_and_counted(tokenizer):
    shown = marked_ids([9] * 1000, tokenizer).plain
    assert shown.count("9") == 160 and "... 840 more ..." in shown


def test_every_token_that_ends_a_response_is_named(tokenizer):
    end = tokenizer.eos_token_id
    assert stop_lines([end, 10**6], tokenizer) == [f"{end} <|endoftext|>", "1000000 (an id without a token)"]
    assert stop_lines([], tokenizer) == ["none: every response has its full length"]


@pytest.mark.parametrize(
    "known, said",
    [
        ({"correct": True}, "right"),
        ({}, "wrong"),
        ({"unformatted": True}, "unformatted"),
        ({"graded": True, "score": 0.25}, "reward 0.25"),
        ({"teaches": False}, "no reward"),
        ({"failure": "timeout"}, "no verdict (timeout)"),
    ],
)
def test_a_verdict_is_said_in_a_word(known, said):
    assert verdict_of(sample(**known)) == said


def test_a_response_stands_with_its_verdict_its_end_and_its_length():
    lines = [t.plain for t in group_lines([sample(correct=True, text="Forty\ntwo"), sample(5, "length")], 7)]
    assert lines == [
        "problem 7: What is six times seven?", "answer: 42", "  1 right, ended, 3 tokens", "    Forty two",
        "  2 wrong, cut, 5 tokens", "    ",
    ]  # fmt: skip


def test_a_long_text_keeps_its_beginning_and_its_end():
    assert shortened("a" * 200 + "z" * 200, 30) == "a" * 20 + " [...] " + "z" * 10
    assert shortened(" one\n\n two ", 30) == "one two"
