"""Problems as prompts: their tokens, and the order in which a run reads them."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors

from fastgrpo.data import PromptStream, encode, held_out_prompts
from fastgrpo.types import Prompt
from tests.data.tokenizers import CHAT, tiny_tokenizer

# --- tokens -----------------------------------------------------------------------------------------------------------

PROBLEMS = [Prompt(0, "one two", "1"), Prompt(1, "one two three one two", "2"), Prompt(4, "three ?", "3")]


def test_a_chat_prompt_is_one_user_message_with_one_begin_token_and_an_open_answer():
    encoded = encode(PROBLEMS, tiny_tokenizer(CHAT), chat_template=True, max_prompt_tokens=100)
    assert [p.prompt_ids.tolist() for p in encoded[::2]] == [[0, 3, 5, 6, 4], [0, 3, 7, 8, 4]]
    assert all(p.prompt_ids.dtype == np.int32 for p in encoded)


def test_a_plain_prompt_is_the_text_with_one_begin_token():
    encoded = encode(PROBLEMS, tiny_tokenizer(CHAT), chat_template=False, max_prompt_tokens=100)
    assert encoded[0].prompt_ids.tolist() == [0, 5, 6]


def test_long_prompts_are_dropped_and_counted():
    encoded = encode(PROBLEMS, tiny_tokenizer(CHAT), chat_template=True, max_prompt_tokens=5)
    assert [p.row for p in encoded] == [0, 4]


def test_a_limit_that_no_prompt_keeps_is_refused_with_the_shortest_length():
    with pytest.raises(ValueError, match=r"None of 3 problems .*max_prompt_tokens 4 tokens: the shortest has 5"):
        encode(PROBLEMS, tiny_tokenizer(CHAT), chat_template=True, max_prompt_tokens=4)


def test_a_missing_chat_template_is_refused_with_the_setting_to_change():
    with pytest.raises(ValueError, match=r"no chat template.*--data\.no_chat_template"):
        encode(PROBLEMS, tiny_tokenizer(), chat_template=True, max_prompt_tokens=100)


def test_a_tokenizer_that_ends_every_text_is_refused():
    with pytest.raises(ValueError, match=r"end token '<eos>' after every text.*--data\.no_special_tokens"):
        encode(PROBLEMS, tiny_tokenizer(end="<eos>"), chat_template=False, max_prompt_tokens=100)


def test_nothing_to_encode_is_refused():
    with pytest.raises(ValueError, match="no problem to encode"):
        encode([], tiny_tokenizer(), chat_template=False, max_prompt_tokens=100)


def test_a_problem_without_a_token_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    with pytest.raises(ValueError, match="no token of the problem in row 7"):
        encode([Prompt(7, " ", "1")], tokenizer, chat_template=False, max_prompt_tokens=100)


# --- the order --------------------------------------------------------------------------------------------------------


def numbered(n: int) -> list[Prompt]:
    return [Prompt(i, str(i), str(i), prompt_ids=np.array([i], np.int32)) for i in range(n)]


def rows(prompts) -> list[int]:
    return [p.row for p in prompts]


seeds = st.integers(0, 2**64 - 1)


@given(n=st.integers(1, 40), seed=seeds, pass_number=st.integers(0, 10**9))
def test_each_pass_visits_every_prompt_once(n, seed, pass_number):
    prompts = PromptStream(numbered(n), seed).prompts_at(pass_number * n, n)
    assert sorted(rows(prompts)) == list(range(n))
    assert [p.position for p in prompts] == list(range(pass_number * n, (pass_number + 1) * n))


@given(n=st.integers(1, 12), seed=seeds, start=st.integers(0, 50), pieces=st.lists(st.integers(0, 17), max_size=8))
def test_the_order_is_the_same_in_pieces_of_any_size_from_any_position(n, seed, start, pieces):
    whole = PromptStream(numbered(n), seed).prompts_at(0, start + sum(pieces))
    positions = itertools.accumulate(pieces, initial=start)
    stream = PromptStream(numbered(n), seed)
    read_in_pieces = [
        p for first, count in zip(positions, pieces, strict=False) for p in stream.prompts_at(first, count)
    ]
    assert rows(read_in_pieces) == rows(whole[start:])
    assert [p.position for p in read_in_pieces] == [p.position for p in whole[start:]]


def test_passes_and_seeds_have_orders_of_their_own():
    orders = {
        tuple(rows(PromptStream(numbered(50), seed).prompts_at(pass_number * 50, 50)))
        for seed in range(20)
        for pass_number in range(20)
    }
    assert len(orders) == 400


def test_the_order_is_uniform():
    n, passes = 4, 6000
    visited = rows(PromptStream(numbered(n), 0).prompts_at(0, n * passes))
    orders, counts = np.unique(np.array(visited).reshape(passes, n), axis=0, return_counts=True)
    assert len(orders) == 24
    expected = passes / 24
    assert ((counts - expected) ** 2 / expected).sum() < 49.7  # chi-squared with 23 degrees of freedom, p = 0.001


def test_the_order_stays_what_it_was_when_a_run_began():
    """A checkpoint holds a position only: a change of this order would break every run's resume."""
    assert rows(PromptStream(numbered(8), 1).prompts_at(0, 16)) == [3, 5, 2, 7, 0, 6, 1, 4, 0, 6, 5, 3, 4, 7, 2, 1]


def test_a_prompt_carries_its_problem():
    prompt = PromptStream(numbered(1), 0).prompts_at(5, 1)[0]
    assert (prompt.position, prompt.row, prompt.text, prompt.answer) == (5, 0, "0", "0")
    assert prompt.prompt_ids.tolist() == [0]


def test_a_stream_refuses_what_has_no_order():
    with pytest.raises(ValueError, match="at least one prompt"):
        PromptStream(numbered(0), 0)
    with pytest.raises(ValueError, match="seed"):
        PromptStream(numbered(1), -1)
    with pytest.raises(ValueError, match="Positions count from 0"):
        PromptStream(numbered(1), 0).prompts_at(-1, 1)


def test_held_out_prompts_keep_the_order_of_the_file():
    encoded = encode(PROBLEMS, tiny_tokenizer(CHAT), chat_template=True, max_prompt_tokens=5)
    assert [(p.position, p.row) for p in held_out_prompts(encoded, 10)] == [(0, 0), (1, 4)]
    assert rows(held_out_prompts(encoded, 1)) == [0]
