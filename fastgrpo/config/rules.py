"""What holds for a setting besides its type, noted on its field."""

from dataclasses import field
from typing import Any, TypedDict, TypeVar, Unpack, cast

T = TypeVar("T")


class Rules(TypedDict, total=False):
    """What holds for a setting besides its type. Bounds hold for each number of a tuple."""

    at_least: float
    above: float
    at_most: float
    below: float
    because: str
    """Reason for the bounds, where their message needs one."""
    free_on_resume: bool
    """May differ between a run and its continuation."""
    is_path: bool
    """Names a file or folder, or may do so; ``~`` and ``{run_dir}`` are filled in."""
    may_change: bool
    """A phase of a recipe may change it in the middle of a run."""


def setting(default: T, **rules: Unpack[Rules]) -> T:
    """A dataclass field with this default and its rules."""
    return cast(T, field(default=default, metadata=rules))


OF_LOSS: Any = None
"""Default of a part of the loss: what the published loss has."""


def part(**rules: Unpack[Rules]) -> Any:
    """A field with this default and these rules."""
    return field(default=OF_LOSS, metadata=rules)
