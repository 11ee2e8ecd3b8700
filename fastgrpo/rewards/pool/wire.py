"""The messages between the pool and its workers, which travel over two pipes.

A frame is one byte of code, eight bytes of length, and a body. Bodies to a worker are pickles, because a pickle can
carry every str, lone surrogates included. Bodies from a worker are text, because the trainer must not unpickle what a
verifier may have written.
"""

import struct
from dataclasses import dataclass
from typing import BinaryIO, Literal

Item = tuple[str, str]  # response text, answer
Judgement = bool | Literal["unformatted"]  # what a verifier returns
KnownAnswer = tuple[str, str, Judgement]  # response text, answer, what the verifier must return

# To a worker.
SETUP = b"S"  # pickled Setup
ITEMS = b"I"  # pickled list of Item

# From a worker: one of the first three after SETUP, then one verdict for each item, in order.
READY = b"Y"
NOT_LOADED = b"L"  # why the verifier could not be loaded
NOT_PASSED = b"P"  # which known answer it judged wrongly
ACCEPTED = b"1"
REJECTED = b"0"
UNFORMATTED = b"U"  # wrong, and without an answer in the demanded form
RAISED = b"R"  # end of the traceback
RETIRED = b"M"  # as RAISED, and the worker ends: it is out of memory and may not get it back

MAX_MESSAGE_CHARS = 4000

_HEADER = struct.Struct("<cQ")


@dataclass(frozen=True)
class Setup:
    """Everything that a worker must know before the first item."""

    verifier: str  # "package.module:function" or "/path/to/file.py:function"
    source: bytes | None  # of that file
    self_test: tuple[KnownAnswer, ...]
    parent_pid: int
    timeout_s: float
    memory_limit_gib: float


def frame(code: bytes, body: bytes = b"") -> bytes:
    return _HEADER.pack(code, len(body)) + body


def text_frame(code: bytes, text: str) -> bytes:
    """A frame with the end of a text, because the last lines of a traceback say what happened."""
    return frame(code, text[-MAX_MESSAGE_CHARS:].encode("utf-8", "backslashreplace"))


def read_frame(stream: BinaryIO) -> tuple[bytes, bytes] | None:
    """Waits for the next frame and returns (code, body); None if the other side is gone, even within a frame."""
    header = stream.read(_HEADER.size)
    if len(header) < _HEADER.size:
        return None
    code, length = _HEADER.unpack(header)
    body = stream.read(length)
    return (code, body) if len(body) == length else None


def take_frames(inbox: bytearray) -> list[tuple[bytes, bytes]]:
    """Removes the complete frames from the front of ``inbox`` and returns them as (code, body)."""
    frames = []
    start = 0
    while len(inbox) - start >= _HEADER.size:
        code, length = _HEADER.unpack_from(inbox, start)
        end = start + _HEADER.size + length
        if end > len(inbox):
            break
        frames.append((code, bytes(inbox[end - length : end])))
        start = end
    del inbox[:start]
    return frames
