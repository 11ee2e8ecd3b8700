"""The type of a setting: whether a value is of it, and what it is called."""

from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from fastgrpo.command_line import did_you_mean


def said(hint: Any) -> str:
    """A setting's type in words."""
    if get_origin(hint) in (UnionType, Union):
        return " or ".join(said(h) for h in get_args(hint))
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    return str(hint) if get_origin(hint) is tuple else "None" if hint is NoneType else str(hint.__name__)


def near(value: Any, hint: Any) -> str:
    """The choices that may have been meant, in words, where there are any."""
    return did_you_mean(str(value), list(map(str, get_args(hint)))) if get_origin(hint) is Literal else ""


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the type that a setting has; a whole number is a float too."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) in (UnionType, Union):
        return any(fits(value, h) for h in get_args(hint))
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and _all_fit(value, get_args(hint))
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, int | float if hint is float else hint)


def _all_fit(values: tuple[Any, ...], hints: tuple[Any, ...]) -> bool:
    """Whether the members of a tuple are of the types that it states; ``int, ...`` is any number of them."""
    if hints[-1] is ...:
        hints = hints[:1] * len(values)
    return len(values) == len(hints) and all(map(fits, values, hints))
