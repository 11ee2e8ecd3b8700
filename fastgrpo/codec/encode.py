"""A value as bytes: a header of JSON, which is the tree of the value, then the bytes of its arrays end to end."""

import dataclasses
import json
import struct
from typing import Any

import numpy as np
import torch

MAGIC = b"fgcodec1"
LENGTH = struct.Struct("<Q")  # of the header, in bytes
NUMBERS = "biufc"
"""The kinds of arrays: bool, signed and unsigned integers, real and complex numbers."""


def encode(value: Any) -> bytes:
    """The bytes from which `decode` makes an equal value. A numpy scalar comes back as Python's own number.

    Raises TypeError for what cannot be written.
    """
    buffers: list[bytes] = []
    header = json.dumps(_tree(value, buffers), separators=(",", ":")).encode("ascii")
    return b"".join((MAGIC, LENGTH.pack(len(header)), header, *buffers))


def _tree(value: Any, buffers: list[bytes]) -> Any:
    """The value as JSON has it. What JSON lacks is an object of one entry, whose key says what it is."""
    if isinstance(value, np.generic):
        value = value.item()
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind is list:
        return [_tree(v, buffers) for v in value]
    if kind is tuple:
        return {"tuple": [_tree(v, buffers) for v in value]}
    if kind is dict:
        return {"dict": [[_tree(k, buffers), _tree(v, buffers)] for k, v in value.items()]}
    if kind is bytes:
        buffers.append(value)
        return {"bytes": len(value)}
    if kind is torch.dtype:
        return {"dtype": str(value).removeprefix("torch.")}
    if kind is np.ndarray and value.dtype.kind in NUMBERS:
        buffers.append(value.tobytes())
        return {"array": [value.dtype.str, list(value.shape)]}
    if dataclasses.is_dataclass(kind):
        names = [f.name for f in dataclasses.fields(kind)]
        return {"class": [kind.__name__, {name: _tree(getattr(value, name), buffers) for name in names}]}
    raise TypeError(f"a value to encode must be of plain objects, dataclasses and arrays of numbers, got a {kind!r}")
