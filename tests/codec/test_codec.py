"""What is encoded comes back; what comes from elsewhere is a value or a ValueError, and nothing of it runs."""

import contextlib
import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastgrpo.codec import decode, encode
from fastgrpo.codec.encode import LENGTH, MAGIC
from fastgrpo.types import Prompt, Request, Response, Sampling


@dataclass(frozen=True, slots=True)
class Inner:
    words: Sequence[str] = ()


@dataclass
class Outer:
    number: int
    share: float
    way: Literal["stop", "length"]
    pairs: tuple[tuple[int, int], ...] = ()
    inner: Inner | None = None
    names: Mapping[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32


def framed(header: Any, rest: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return MAGIC + LENGTH.pack(len(text)) + text + rest


keys = st.none() | st.booleans() | st.integers() | st.text() | st.binary()
plain = st.recursive(
    keys | st.floats(allow_nan=False),
    lambda inner: (
        st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.tuples(st.integers()), inner)
    ),
    max_leaves=20,
)


wrong_kinds = st.recursive(
    keys.filter(lambda v: not isinstance(v, bytes)),
    lambda inner: (
        st.lists(inner)
        | st.builds(
            lambda kind, v: {kind: v}, st.sampled_from(["tuple", "dict", "bytes", "dtype", "array", "class"]), inner
        )
        | st.builds(lambda name, v: {"class": [name, v]}, st.sampled_from(["Inner", "Outer"]), inner)
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(wrong_kinds)
@example({"class": ["Inner", 5]})
@example({"class": ["Inner", None]})
@example({"array": ["<i4", "xy"]})
@example({"dtype": "nn"})
def test_a_tree_of_the_wrong_kinds_is_a_value_or_a_value_error(tree):
    with contextlib.suppress(ValueError):
        decode(framed(tree, b"12345678"), [Inner, Outer])


@settings(deadline=None)
@given(plain)
@example({"a": [(1, 2.5), -0.0, None, b"\x00"], (1, ("x",)): "\ud800\u2028", 3: {}})
def test_plain_values_come_back_with_their_types(value):
    found = decode(encode(value))
    assert found == value and repr(found) == repr(value)


@pytest.mark.parametrize("dtype", ["?", "i1", "<i4", ">i4", "u8", "f2", "f4", "f8", "c8"])
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 0, 3), (2, 3)])
def test_arrays_come_back_bit_for_bit_and_may_be_written(dtype, shape):
    array = np.asarray(np.random.default_rng(0).normal(size=shape) * 50).astype(dtype)
    (found,) = decode(encode([array]))
    assert found.dtype == array.dtype and found.shape == shape and found.tobytes() == array.tobytes()
    found[...] = 1


def test_a_strided_array_comes_back_in_its_order():
    array = np.arange(12).reshape(3, 4).T[::2]
    assert np.array_equal(decode(encode(array)), array)


def test_dataclasses_come_back_and_numpy_scalars_as_numbers():
    outer = Outer(np.int64(3), np.float32(0.5), "stop", ((1, 2),), Inner(["a"]), {"x": [1]}, torch.bfloat16)
    found = decode(encode({7: outer}), [Outer, Inner])
    assert found == {7: outer} and type(found[7].number) is int


def test_the_types_of_a_step_come_back():
    prompt = Prompt(3, "12+3=?", "15", prompt_ids=np.arange(5, dtype=np.int32), position=9)
    logprobs = np.array([-1.0, -np.inf, np.nan], dtype=np.float32)
    response = Response(
        np.arange(3, dtype=np.int32), logprobs, "stop", 4, 0.5, ((1, 5),), np.array([True, False, True])
    )
    value = [(Request(1, prompt, 0, Sampling(4, 16, stop_token_ids=(1, 2))), response)]
    assert repr(decode(encode(value), [Prompt, Request, Sampling, Response])) == repr(value)


class Planted:
    def __reduce__(self):
        return exec, ("raise RuntimeError('executed')",)


def test_a_pickle_is_refused_unread():
    with pytest.raises(ValueError, match="were not written by"):
        decode(pickle.dumps(Planted()))


@pytest.mark.parametrize("value", [{1, 2}, object(), np.array(["a"]), np.array([None]), Planted(), torch.zeros(1), 1j])
def test_what_cannot_be_written_is_refused(value):
    with pytest.raises(TypeError, match="plain objects"):
        encode([value])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "were not written by"),
        (MAGIC + LENGTH.pack(2**63), "9223372036854775808 bytes is named, and 0 are there"),
        (framed(b"{"), "Expecting"),
        (framed(b"\xff"), "decode"),
        (framed(b"[" * 200_000), "RecursionError"),
        (framed(b"[" * 5000 + b"]" * 5000), "RecursionError"),
        (framed({"a": 1, "b": 2}), "one entry, got 2"),
        (framed({"eval": "1"}), "unknown kind"),
        (framed({"tuple": 3}), "hold no value"),
        (framed({"dict": [[[], 1]]}), "hold no value"),
        (framed({"dict": [1]}), "hold no value"),
        (framed({"bytes": 2**62}, b"ab"), "4611686018427387904 bytes are named, and 2 are there"),
        (framed({"bytes": -1}, b"ab"), "-1 bytes are named"),
        (framed({"bytes": True}, b"a"), "True bytes are named"),
        (framed({"bytes": 1}, b"ab"), "1 bytes are left over"),
        (framed({"array": ["<f4", [2**40]]}, b"ab"), "are named, and 2 are there"),
        (framed({"array": ["<f4", [2**80, 0]]}), "must be of numbers"),
        (framed({"array": ["<f4", [2**62, 2**62, 0]]}), "reshape"),
        (framed({"array": ["<f4", [-1]]}, b"abcd"), "must be of numbers"),
        (framed({"array": ["|O8", [1]]}, bytes(8)), "must be of numbers"),
        (framed({"array": ["(9999999,)f4", [1]]}, bytes(8)), "must be of numbers"),
        (framed({"array": ["<f7", [1]]}, bytes(7)), "hold no value"),
        (framed({"array": [7, [1]]}), "hold no value"),
        (framed({"array": ["<f4", [1] * 999]}, bytes(4)), "must be of numbers"),
        (framed({"dtype": "load"}), "no dtype 'load'"),
        (framed({"dtype": "__builtins__"}), "no dtype"),
        (framed({"dtype": 3}), "hold no value"),
        (framed({"class": ["Planted", {}]}), "only Inner, Outer may"),
        (framed({"class": ["Inner", {}]}), "it has others"),
        (framed({"class": ["Inner", {"words": [], "more": 1}]}), "it has others"),
        (framed({"class": ["Inner", {"words": [1]}]}), r"Inner\.words must be .*str.*, got a list"),
        (framed({"class": ["Inner", {"words": "ab"}]}), r"Inner\.words must be .*, got a str"),
    ],
)
def test_broken_bytes_are_refused_in_words(content, says):
    with pytest.raises(ValueError, match=says):
        decode(content, [Outer, Inner])


@pytest.mark.parametrize(
    "changed",
    [
        {"number": True},
        {"number": 1.0},
        {"share": "1"},
        {"way": "halt"},
        {"pairs": ((1, 2, 3),)},
        {"pairs": [(1, 2)]},
        {"pairs": ((1, "2"),)},
        {"inner": ()},
        {"names": {1: 2}},
        {"dtype": "float32"},
    ],
)
def test_a_field_of_another_type_is_refused(changed):
    good = {
        "number": 1,
        "share": 1,
        "way": "stop",
        "pairs": ((1, 2),),
        "inner": Inner(),
        "names": {},
        "dtype": torch.int8,
    }
    assert decode(encode(Outer(**good)), [Outer, Inner]) == Outer(**good)
    (name,) = changed
    with pytest.raises(ValueError, match=rf"Outer\.{name} must be"):
        decode(encode(Outer(**good | changed)), [Outer, Inner])


@settings(deadline=None)
@given(st.data())
def test_any_damage_gives_a_value_or_a_value_error(data):
    content = bytearray(encode([Outer(1, 0.5, "stop", ((1, 2),), Inner(["a"])), np.arange(6.0), {"k": (b"xyz", None)}]))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    try:
        decode(bytes(content), [Outer, Inner])
    except ValueError:
        return


def test_no_byte_of_a_message_is_counted_twice():
    """A header of many arrays that all mean the same bytes would take many times the message's memory."""
    header = [{"array": ["|u1", [1000]]}] * 1000
    with pytest.raises(ValueError, match="1000 bytes are named, and 0 are there"):
        decode(framed(header, bytes(1000)))
