"""How a published run is written down: its constants with their sources, and our choices with their reasons.

The runs are in ``tests/recipes/sources/``. They were typed from papers and released code, not from the recipes, so a
slip in a recipe shows, and so does a slip in a source file.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_AS_PUBLISHED = object()


@dataclass(frozen=True)
class Range:
    """A source that gives a lowest and a highest value: any value between them is as published."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low} to {self.high}"


class Words(str):
    """A value that a source describes and does not give, or that is no value of ours: the recipe has another one."""


@dataclass(frozen=True)
class Constant:
    """One value of a source, as JSON holds it: a list where the setting is a tuple."""

    value: Any
    source: str
    ours: Any = _AS_PUBLISHED
    """What the recipe has on purpose instead."""
    note: str = ""
    """One or more sentences: why ours is another value, or what differs although the value is the same."""

    def __post_init__(self) -> None:
        if self.differs and not self.note:
            raise ValueError(f"{self.value!r} of {self.source} is not what the recipe has: say why in `note`")

    @property
    def differs(self) -> bool:
        """Whether the recipe has a value of its own: another one, or one that it picked from a range."""
        return self.ours is not _AS_PUBLISHED or isinstance(self.value, Range)

    @property
    def wanted(self) -> Any:
        """What the recipe must have."""
        return self.value if self.ours is _AS_PUBLISHED else self.ours


@dataclass(frozen=True)
class Detail:
    """What a source does and no setting of ours says."""

    what: str
    theirs: str
    source: str
    ours: str = "the same"

    @property
    def differs(self) -> bool:
        return self.ours != "the same"


@dataclass(frozen=True, kw_only=True)
class Run:
    """What is known of the run that a recipe reproduces.

    Values go by their path: ``reward`` is the verifier's name, ``data.shuffle`` a setting, ``algorithm.shaping`` a part
    of the recipe's Algorithm, and ``algorithm.shaping.Cycled.on_steps`` a value inside that part.
    """

    constants: Mapping[str, Constant]
    chosen: Mapping[str, str] = field(default_factory=dict)
    """What no source gives, and why the recipe has what it has."""
    fidelity: Mapping[str, Constant] = field(default_factory=dict)
    """What ``--fidelity verl`` changes, and to what."""
    details: tuple[Detail, ...] = ()
    base: str = ""
    """The recipe that this one varies: the pages do not repeat its rows."""


@dataclass(frozen=True)
class System:
    """Runs that share one table on the pages, by the recipe's name."""

    title: str
    runs: Mapping[str, Run]


def given_by(source: str, **values: Any) -> dict[str, Constant]:
    """Constants of one source by their paths: ``data__shuffle=True`` is the setting data.shuffle."""
    return {name.replace("__", "."): Constant(value, source) for name, value in values.items()}


def agrees(wanted: Any, value: Any) -> bool:
    """Whether a recipe's value is the wanted one: floats to nine digits, all else exactly."""
    if isinstance(wanted, Range):
        return bool(wanted.low <= value <= wanted.high)
    if isinstance(wanted, float) and isinstance(value, float):
        return math.isclose(wanted, value, rel_tol=1e-9)
    return bool(wanted == value) and isinstance(wanted, bool) == isinstance(value, bool)
