"""The messages between the pool and its workers, which travel over two pipes.

A frame is one byte of code, eight bytes of a call's number, eight bytes of length, and a body. A worker and its
handle number the calls alike, from 0 on. Bodies to a worker are pickles, because a pickle can carry every str, lone
surrogates included: the pipe has no name, and the pool alone has its other end. Bodies from a worker are text,
because the trainer must not unpickle what a reward may have written.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

from fastgrpo.rewards.judgement import KnownAnswer


class Item(NamedTuple):
    """A response to be judged. A pair of texts will do where the reward asks for nothing else."""

    response: str
    answer: str
    named: Mapping[str, Any] = {}  # what the reward asks for by name


Call = Sequence[tuple[str, str, Mapping[str, Any]]]
"""What a reward judges at once, one response, or a group where it takes whole ones: items as plain tuples."""

# To a worker.
SETUP = b"S"  # pickled Setup
CALLS = b"C"  # pickled list of Call

# From a worker: one of the first three after SETUP, then one message for each call. A worker that is not async answers
# in order.
READY = b"Y"  # how the reward is called, as JSON
NOT_LOADED = b"L"  # why the reward could not be loaded
NOT_PASSED = b"P"  # which known answer it judged wrongly, or how it failed on a made-up response
ACCEPTED = b"1"
REJECTED = b"0"
JUDGED = b"J"  # a judgement as JSON, in a list with one for each item where the call is a group
RAISED = b"R"  # end of the traceback
TIMED_OUT = b"T"  # an async reward took too long, and the others go on
RETIRED = b"M"  # as RAISED, and the worker ends: it is out of memory and may not get it back
BROKEN = b"B"  # the reward must not go on: why

MAX_MESSAGE_CHARS = 4000

_HEADER = struct.Struct("<cQQ")


@dataclass(frozen=True)
class Setup:
    """Everything that a worker must know before the first call."""

    reward: str  # "package.module:function" or "/path/to/file.py:function"
    source: bytes | None  # of that file
    self_test: tuple[KnownAnswer, ...] | None  # None: the reward's own, else a call on a made-up response
    example: Item  # for what the reward asks for by name in these tests
    parent_pid: int
    timeout_s: float
    memory_limit_gib: float
    concurrency: int  # calls of an async reward that run at once


def frame(code: bytes, body: bytes = b"", number: int = 0) -> bytes:
    return _HEADER.pack(code, number, len(body)) + body


def text_frame(code: bytes, text: str) -> bytes:
    """A frame with the end of a text, because the last lines of a traceback say what happened."""
    return frame(code, text[-MAX_MESSAGE_CHARS:].encode("utf-8", "backslashreplace"))


def read_frame(stream: BinaryIO) -> tuple[bytes, bytes] | None:
    """Waits for the next frame and returns (code, body); None if the other side is gone, even within a frame."""
    header = stream.read(_HEADER.size)
    if len(header) < _HEADER.size:
        return None
    code, _, length = _HEADER.unpack(header)
    body = stream.read(length)
    return (code, body) if len(body) == length else None


def take_frames(inbox: bytearray) -> list[tuple[bytes, int, bytes]]:
    """Removes the complete frames from the front of ``inbox`` and returns them as (code, number, body)."""
    frames = []
    start = 0
    while len(inbox) - start >= _HEADER.size:
        code, number, length = _HEADER.unpack_from(inbox, start)
        end = start + _HEADER.size + length
        if end > len(inbox):
            break
        frames.append((code, number, bytes(inbox[end - length : end]) if length else b""))
        start = end
    del inbox[:start]
    return frames
