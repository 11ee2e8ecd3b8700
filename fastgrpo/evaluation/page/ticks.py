"""The places of an axis that get a number."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Tick:
    place: float
    text: str


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`; places on it are percentages of its length."""

    low: float
    high: float
    ticks: Sequence[Tick]

    def place(self, value: float) -> float:
        return place(value, self.low, self.high)


def place(value: float, low: float, high: float) -> float:
    return round(100 * (float(value) - low) / (high - low), 2)


def ticks_within(low: float, high: float, *, wanted: int = 6, whole: bool = False, end: float | None = None) -> Axis:
    """An axis that holds the values from `low` to `high`, with about so many ticks at round numbers.

    It ends at a tick, or at `end`. `whole`: ticks are whole numbers.
    """
    step = _round_step((high - low or 1.0) / (wanted - 1))
    step = max(1.0, step) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    least, most = first * step, last * step if end is None else end
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    values = [i * step for i in range(first, last + 1) if i * step <= most + 1e-9]
    return Axis(least, most, [Tick(place(v, least, most), f"{v:,.{digits}f}".replace("-", "\u2212")) for v in values])


def _round_step(size: float) -> float:
    """The least of 1, 2, 5, 10 times a power of ten that is not below `size`."""
    ten = 10.0 ** math.floor(math.log10(size))
    return next(n * ten for n in (1, 2, 5, 10) if n * ten >= size * (1 - 1e-9))
