"""What a server drew comes out of its bytes as it went in, and nothing comes out of other bytes."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fastgrpo.rollout.servers.drawn import SIZE_BYTES, Drawn
from tests.rollout.servers.fake_server import drawn_of

DRAWN = drawn_of([5, 2**31 - 1, 0], [-0.1, -np.inf, 0.0], finish_reason="stop", spans=((0, "run/1"), (2, "run/2")))
HEADER = {"finish_reason": "stop", "num_tokens": 2, "has_logprobs": True, "spans": []}


def size_of(header: bytes) -> bytes:
    return len(header).to_bytes(SIZE_BYTES, "little")


def body_of(header: Any, arrays: int = 16) -> bytes:
    text = json.dumps(header).encode()
    return size_of(text) + text + bytes(arrays)


@pytest.mark.parametrize("drawn", [DRAWN, replace(DRAWN, logprobs=None), drawn_of([], finish_reason=None)])
def test_what_goes_in_comes_out(drawn):
    found = Drawn.of_bytes(drawn.to_bytes())
    assert (found.finish_reason, found.spans) == (drawn.finish_reason, drawn.spans)
    assert found.ids.dtype == np.int32 and np.array_equal(found.ids, drawn.ids)
    assert (found.logprobs is None) == (drawn.logprobs is None)
    if found.logprobs is not None:
        assert found.logprobs.dtype == np.float32 and np.array_equal(found.logprobs, drawn.logprobs)


def test_what_comes_out_is_the_readers_own():
    found = Drawn.of_bytes(DRAWN.to_bytes())
    assert all(array.flags.owndata and array.flags.writeable for array in (found.ids, found.logprobs))


@pytest.mark.parametrize("logprobs, each", [(np.zeros(1000, np.float32), 8), (None, 4)])
def test_a_token_is_eight_bytes_and_without_a_logprob_four(logprobs, each):
    size = len(Drawn("length", np.zeros(1000, np.int32), logprobs).to_bytes())
    assert 0 < size - 1000 * each < 100


def test_bytes_are_little_endian_whatever_the_array_is():
    body = Drawn("stop", np.array([258], ">i8"), np.array([-1.5], ">f8")).to_bytes()
    assert body.endswith(b"\x02\x01\0\0" + b"\0\0\xc0\xbf")


def test_logprobs_of_other_tokens_do_not_go_out():
    with pytest.raises(AssertionError, match="2 logprobs for 3 tokens"):
        replace(DRAWN, logprobs=np.zeros(2, np.float32)).to_bytes()


def test_no_part_of_an_answer_is_one_and_neither_is_more_than_one():
    body = DRAWN.to_bytes()
    for part in (*(body[:size] for size in range(len(body))), body + b"\0", body + body):
        with pytest.raises(ValueError, match="it has"):
            Drawn.of_bytes(part)


@pytest.mark.parametrize(
    "body, message",
    [
        (b"<html>a proxy's page</html>", "it has no header"),
        (size_of(b"12") + b"\xff\xff", "it has no header"),
        (body_of([]), "its header is no object"),
        (body_of({}), "its header lacks something: KeyError"),
        (body_of({**HEADER, "num_tokens": None}), "its header lacks something: TypeError"),
        (body_of({**HEADER, "num_tokens": float("inf")}), "its header lacks something: OverflowError"),
        (body_of({**HEADER, "spans": 7}), "its header lacks something: TypeError"),
        (body_of({**HEADER, "spans": [[0]]}), "not enough values to unpack"),
        (body_of({**HEADER, "num_tokens": "many"}), "invalid literal"),
        (body_of({**HEADER, "num_tokens": 3}), "it has .* bytes, and .* by its header"),
        (body_of({**HEADER, "num_tokens": 1}), "it has .* bytes, and .* by its header"),
        (body_of({**HEADER, "num_tokens": -1}, 0), "it has .* bytes, and .* by its header"),
        (body_of({**HEADER, "num_tokens": 1e300}), "it has .* bytes, and .* by its header"),
        (body_of({**HEADER, "has_logprobs": False}), "it has .* bytes, and .* by its header"),
    ],
)
def test_anything_else_is_refused_in_words(body, message):
    with pytest.raises(ValueError, match=message):
        Drawn.of_bytes(body)
