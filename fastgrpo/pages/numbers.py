"""Numbers in few characters."""

import math
from collections.abc import Iterable


def rounded(values: Iterable[float], digits: int) -> list[float | int | None]:
    """The values with so many significant digits, as JSON holds them in few characters; None for NaN."""
    return [None if math.isnan(value) else _short(float(f"{value:.{digits}g}")) for value in values]


def _short(value: float) -> float | int:
    """An integer in place of a float such as 5.0, whose point needs two more characters."""
    return int(value) if value.is_integer() and abs(value) < 1e15 else value
