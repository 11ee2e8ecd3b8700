"""Responses by the real tokenizers of four families: the text is what the ids say, and the ids stay what was drawn."""

import re
from functools import cache

import numpy as np
import pytest

from fastgrpo.algorithm.judging import Judging
from fastgrpo.types import Prompt, Request, Response, Sample, Sampling
from tests.algorithm.test_judging import Pool
from tests.real_tokenizers import bare, loaded, needs_tokenizers, of_each_family

pytestmark = [pytest.mark.slow, needs_tokenizers]

NUM_RESPONSES, LONG = 64, 50_000


def drawn(family, num_ids):
    """Responses of random ids, of all rows of the model, those of no token among them."""
    random = np.random.default_rng(num_ids)
    return [random.integers(0, family.num_rows, num_ids).tolist() for _ in range(NUM_RESPONSES)]


def judged(family, all_ids):
    """The samples as they come from judging, with the text that the verifier had of each."""
    prompt, pool = Prompt(0, "", "x", prompt_ids=np.zeros(1, np.int32), position=0), Pool()
    sampling = Sampling(len(all_ids), max_response_tokens=LONG)
    judging = Judging(loaded(family), pool)
    samples = [
        Sample(prompt, Response(np.array(ids, np.int32), np.zeros(len(ids), np.float32), "length", 0))
        for ids in all_ids
    ]
    for n, sample in enumerate(samples):
        judging.begin(Request(n, prompt, n, sampling), sample.tokens)
    [group] = judging.judged([samples], sampling, right_from=1.0)
    assert [s.response is before.response for s, before in zip(group, samples, strict=True)] == [True] * len(samples)
    assert [text for [text] in pool.asked] == [sample.text for sample in group]
    return group


def gpt2_bytes():
    """The byte that each character of a byte-level vocabulary stands for (Radford et al. 2019)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + n): b for n, b in enumerate(others)}


BYTES = gpt2_bytes()


@cache
def control_ids(family):
    return {n for n, token in bare(family).get_added_tokens_decoder().items() if token.special}


def text_by_hand(family, ids):
    """What the vocabulary's pieces say, control tokens and ids of no token left out."""
    found = [bare(family).id_to_token(n) for n in ids if n not in control_ids(family)]
    pieces = [piece for piece in found if piece is not None]
    if family.name != "gemma3":
        content = b"".join(
            bytes(BYTES[c] for c in piece) if all(c in BYTES for c in piece) else piece.encode() for piece in pieces
        )
        return content.decode(errors="replace")
    text = ""
    for is_byte, run in runs(pieces):
        text += of_bytes(run) if is_byte else "".join(run).replace("▁", " ")
    return text


def runs(pieces):
    found = []
    for piece in pieces:
        is_byte = re.fullmatch("<0x[0-9A-F]{2}>", piece) is not None
        if not found or found[-1][0] != is_byte:
            found.append((is_byte, []))
        found[-1][1].append(piece)
    return found


def of_bytes(run):
    content = bytes(int(piece[3:5], 16) for piece in run)
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "\ufffd" * len(content)


@of_each_family
@pytest.mark.parametrize("num_ids", [1, 3, 40, 1000])
def test_a_text_is_what_the_pieces_of_its_ids_say(family, num_ids):
    all_ids = drawn(family, num_ids)
    group = judged(family, all_ids)
    assert [s.text for s in group] == [text_by_hand(family, ids) for ids in all_ids]


@of_each_family
def test_ids_stay_as_they_were_drawn_where_their_text_has_others(family):
    all_ids = drawn(family, 40)
    group = judged(family, all_ids)
    assert [s.tokens.response_ids.tolist() for s in group] == all_ids
    again = [bare(family).encode(s.text, add_special_tokens=False).ids for s in group]
    assert sum(ids == others for ids, others in zip(again, all_ids, strict=True)) < NUM_RESPONSES * 3 / 4


@of_each_family
def test_half_a_character_is_a_sign_of_its_own_and_the_text_can_be_sent(family):
    ids = [n for n in range(3000) if "\ufffd" in text_by_hand(family, [n])][:100]
    assert len(ids) == 100
    [sample] = judged(family, [ids])
    assert sample.text == text_by_hand(family, ids) and sample.text.encode().decode() == sample.text


@of_each_family
def test_control_tokens_are_left_out_and_thoughts_stay(family):
    words = bare(family).encode("so <think>2 . 5 , 3 ?</think>\n\\boxed{5 , 3}", add_special_tokens=False).ids
    [sample] = judged(family, [[*words, family.turn_end]])
    assert sample.text == "so <think>2 . 5 , 3 ?</think>\n\\boxed{5 , 3}"


@of_each_family
def test_ids_of_no_token_are_left_out(family):
    known = bare(family).encode("one two", add_special_tokens=False).ids
    size = bare(family).get_vocab_size()
    [sample] = judged(family, [[known[0], size, *known[1:], size + 100, 2**30]])
    assert sample.text == "one two"


@of_each_family
def test_a_very_long_response_is_read_whole(family):
    [ids, *_] = drawn(family, LONG)
    [sample] = judged(family, [ids])
    assert sample.text == text_by_hand(family, ids) and len(sample.text) > LONG
