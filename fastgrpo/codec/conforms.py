"""Whether a value is what an annotation says."""

import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any


def conforms(value: Any, annotation: Any) -> bool:
    """True if the value, with all that is in it, is of the annotated type. An int is a float, a bool is no int."""
    origin, of = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return True
    if annotation is None:
        return value is None
    if origin is types.UnionType or origin is typing.Union:
        return any(conforms(value, one) for one in of)
    if origin is typing.Literal:
        return any(type(value) is type(one) and value == one for one in of)
    if origin is not None and not isinstance(value, origin):
        return False
    if origin is tuple:
        if of[1:] == (...,):
            return all(conforms(v, of[0]) for v in value)
        return len(value) == len(of) and all(conforms(v, one) for v, one in zip(value, of, strict=True))
    if origin is not None and issubclass(origin, Mapping):
        return all(conforms(k, of[0]) and conforms(v, of[1]) for k, v in value.items())
    if origin is not None and issubclass(origin, Sequence):
        return isinstance(value, list | tuple) and all(conforms(v, of[0]) for v in value)
    if annotation is float:
        return type(value) in (int, float)
    return type(value) is annotation
