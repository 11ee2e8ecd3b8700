"""Reads W&B's offline file: LevelDB's log format, with its records as W&B's own protobufs."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32768, struct.Struct("<IHB")  # checksum, length, kind
PREAMBLE = 7  # bytes that say what the file is
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def chunks(path: Path) -> Iterator[bytes]:
    """The records, put together from their pieces."""
    content, place, record = path.read_bytes(), PREAMBLE, b""
    while place + HEADER.size <= len(content):
        left = BLOCK - place % BLOCK
        if left < HEADER.size:
            place += left
            continue
        _, length, kind = HEADER.unpack_from(content, place)
        place += HEADER.size
        piece = content[place : place + length]
        place += length
        record = piece if kind in (FULL, FIRST) else record + piece
        if kind in (FULL, LAST):
            yield record


def records(path: Path) -> Iterator[Any]:
    from wandb.proto.wandb_internal_pb2 import Record

    return map(Record.FromString, chunks(path))


def history(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """What was logged: step, names and values."""
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            values = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
            yield record.history.step.num, values
