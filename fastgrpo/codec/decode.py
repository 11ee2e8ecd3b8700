"""A value from bytes that may come from anywhere: every length is compared with what is there before it is used."""

import dataclasses
import functools
import json
import math
import re
import typing
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from fastgrpo.codec.conforms import conforms
from fastgrpo.codec.encode import LENGTH, MAGIC, NUMBERS

MOST_DIMENSIONS = 32
_NUMBER = re.compile(rf"[<>|][{NUMBERS}]\d{{1,2}}")


def decode(content: bytes, types: Iterable[type] = ()) -> Any:
    """The value that `encode` was given. Dataclasses are made of these types alone, their fields of the types that they
    are annotated with.

    It takes up to some twenty times the memory of ``content``, as lists of empty lists do. Raises ValueError, and
    nothing else, for any other bytes.
    """
    start = len(MAGIC) + LENGTH.size
    if len(content) < start or content[: len(MAGIC)] != MAGIC:
        raise ValueError("these bytes were not written by fastgrpo.codec.encode")
    (length,) = LENGTH.unpack_from(content, len(MAGIC))
    if length > len(content) - start:
        raise ValueError(f"a header of {length} bytes is named, and {len(content) - start} are there")
    reader = _Reader(memoryview(content)[start + length :], {t.__name__: t for t in types})
    try:
        value = reader.value(json.loads(bytes(content[start : start + length])))
    except (TypeError, AttributeError, LookupError, ArithmeticError, RecursionError, MemoryError) as error:
        raise ValueError(f"these bytes hold no value: {type(error).__name__}: {error}") from error
    if reader.rest:
        raise ValueError(f"{len(reader.rest)} bytes are left over")
    return value


class _Reader:
    """Takes buffers off the front of ``rest``, each once, so that no byte is ever copied twice."""

    def __init__(self, rest: memoryview, types: Mapping[str, type]) -> None:
        self.rest, self.types = rest, types

    def value(self, tree: Any) -> Any:
        if isinstance(tree, list):
            return [self.value(t) for t in tree]
        if not isinstance(tree, dict):
            return tree
        if len(tree) != 1:
            raise ValueError(f"an object of a header must have one entry, got {len(tree)}")
        ((kind, content),) = tree.items()
        match kind:
            case "tuple":
                return tuple(self.value(t) for t in content)
            case "dict":
                return {self.value(k): self.value(v) for k, v in content}
            case "bytes":
                return bytes(self.take(content))
            case "dtype":
                return _dtype(content)
            case "array":
                return self.array(*content)
            case "class":
                return self.instance(*content)
        raise ValueError(f"a header names an unknown kind of value, {kind[:40]!r}")

    def take(self, length: int) -> memoryview:
        if type(length) is not int or not 0 <= length <= len(self.rest):
            raise ValueError(f"{str(length)[:40]} bytes are named, and {len(self.rest)} are there")
        taken, self.rest = self.rest[:length], self.rest[length:]
        return taken

    def array(self, dtype: str, shape: list[int]) -> np.ndarray:
        is_shape = len(shape) <= MOST_DIMENSIONS and all(type(n) is int and 0 <= n < 2**63 for n in shape)
        if not _NUMBER.fullmatch(dtype) or not is_shape:
            raise ValueError(f"an array must be of numbers, got dtype {dtype[:40]!r} and shape {str(shape)[:40]}")
        kind = np.dtype(dtype)
        return np.frombuffer(self.take(math.prod(shape) * kind.itemsize), kind).reshape(shape).copy()

    def instance(self, name: str, given: dict[str, Any]) -> Any:
        if (cls := self.types.get(name)) is None:
            raise ValueError(f"a {name[:40]!r} came, and only {', '.join(sorted(self.types)) or 'none'} may")
        if given.keys() != _annotations(cls).keys():
            raise ValueError(f"a {name} came with fields {', '.join(given)[:200]}; it has others")
        values = {field: self.value(tree) for field, tree in given.items()}
        for field, annotation in _annotations(cls).items():
            if not conforms(values[field], annotation):
                raise ValueError(f"{name}.{field} must be {annotation}, got a {type(values[field]).__name__}")
        return cls(**values)


@functools.cache
def _annotations(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name) if re.fullmatch(r"[a-z]\w{1,30}", name) and hasattr(torch, name) else None
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"torch has no dtype {name[:40]!r}")
    return dtype
