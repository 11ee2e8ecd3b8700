"""The figures of the page: dots with their intervals and histograms as SVG that the template writes, and curves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from fastgrpo.evaluation.page.ticks import Tick, ticks_within
from fastgrpo.evaluation.records import Judged
from fastgrpo.evaluation.same_protocol import Published
from fastgrpo.evaluation.statistics import Difference, Estimate
from fastgrpo.evaluation.summary import Accuracies, Summary
from fastgrpo.evaluation.tables import AVERAGE, averages
from fastgrpo.pages import COLOURS, rounded

_DASHES: tuple[list[int] | None, ...] = (None, [8, 4], [2, 3])
SYMBOLS: Mapping[str, str] = {  # paths around (0, 0)
    "dot": "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0z",
    "diamond": "M0-6 6 0 0 6-6 0z",
    "square": "M-4.5-4.5h9v9h-9z",
    "triangle": "M0-6 5.5 4.5h-11z",
    "x": "M-4.5-4.5 4.5 4.5M-4.5 4.5 4.5-4.5",
    "plus": "M-6 0H6M0-6V6",
    "star": "M0-6V6M-5.2-3 5.2 3M-5.2 3 5.2-3",
}
_OF_OTHERS = tuple(SYMBOLS)[1:]
_LINE, _SLOT = 44, 18  # pixels: the least height of a benchmark's line, and of a run in it
_BINS = 40
HISTOGRAM_HEIGHT = 160


@dataclass(frozen=True, kw_only=True)
class Point:
    """A value in a benchmark's line; places are percentages of the width, `y` are pixels from the line's top."""

    name: str
    symbol: str
    colour: str
    value: float
    low: float
    high: float
    text: str
    y: float = 0.0

    @property
    def has_interval(self) -> bool:
        return self.high > self.low


@dataclass(frozen=True)
class Dots:
    """A line for each benchmark."""

    lines: Mapping[str, Sequence[Point]]
    ticks: Sequence[Tick]
    height: int  # of a line, in pixels

    @property
    def key(self) -> dict[str, Point]:
        """Name -> a point that has its colour and its symbol."""
        found: dict[str, Point] = {}
        for points in self.lines.values():
            for point in points:
                found.setdefault(point.name, point)
        return found


@dataclass(frozen=True, kw_only=True)
class Bar:
    """Right and wrong responses with so many tokens; `left` and `width` in percent, `right` and `wrong` in pixels."""

    left: float
    width: float
    right: float
    wrong: float
    text: str


@dataclass(frozen=True)
class Histogram:
    bars: Sequence[Bar]
    ticks: Sequence[Tick]  # tokens
    heights: Sequence[Tick]  # responses; places in pixels from the bottom
    counts: Mapping[str, int]
    colours: Mapping[str, str]


def accuracy(summary: Summary, published: Sequence[Published]) -> Dots:
    """A line for each benchmark: this evaluation's accuracy with its interval, and published ones beside it."""
    lines = {name: [_point(summary.name, "dot", COLOURS[0], e)] for name, e in averages(summary).items()}
    for i, model in enumerate(dict.fromkeys(row.model for row in published)):
        symbol, colour = _OF_OTHERS[i % len(_OF_OTHERS)], COLOURS[1 + i % (len(COLOURS) - 1)]
        for row in published:
            if row.model == model and row.benchmark in lines:
                found = Estimate(row.value / 100, None, None)
                lines[row.benchmark].append(_point(model, symbol, colour, found))
    return _dots(lines, beside=False)


def accuracies(runs: Mapping[str, Mapping[str, Estimate]]) -> Dots:
    """A line for each benchmark, a colour for each run."""
    return _dots(_by_benchmark(runs), beside=True)


def differences(runs: Mapping[str, Mapping[str, Difference]]) -> Dots:
    """The difference of each run to the first, in percentage points, with its interval; by run and benchmark."""
    found = {name: {benchmark: d.estimate for benchmark, d in values.items()} for name, values in runs.items()}
    return _dots(_by_benchmark(found, first=1), beside=True)


def _by_benchmark(runs: Mapping[str, Mapping[str, Estimate]], first: int = 0) -> dict[str, list[Point]]:
    names = dict.fromkeys(name for values in runs.values() for name in values)
    lines: dict[str, list[Point]] = {name: [] for name in names}
    for i, (run, values) in enumerate(runs.items(), start=first):
        for benchmark, estimate in values.items():
            lines[benchmark].append(_point(run, "dot", COLOURS[i % len(COLOURS)], estimate))
    return lines


def _point(name: str, symbol: str, colour: str, estimate: Estimate) -> Point:
    """A point whose places are still in percent of the value's own scale."""
    value = 100 * estimate.value
    low, high = (value if end is None else 100 * end for end in (estimate.low, estimate.high))
    bounds = f" ({low:.1f} to {high:.1f})" if high > low else ""
    return Point(
        name=name, symbol=symbol, colour=colour, value=value, low=low, high=high, text=f"{name}: {value:.2f}{bounds}"
    )


def _dots(lines: Mapping[str, Sequence[Point]], *, beside: bool) -> Dots:
    """The points at their places; those of a line side by side or on top of each other."""
    points = [point for line in lines.values() for point in line]
    ticks = ticks_within(min(0.0, *(p.low for p in points)), max(0.0, *(p.high for p in points)))
    names = list(dict.fromkeys(point.name for point in points))
    height = max(_LINE, _SLOT * len(names) + 8) if beside else _LINE

    def placed(point: Point) -> Point:
        y = height / 2 + (_SLOT * (names.index(point.name) - (len(names) - 1) / 2) if beside else 0)
        value, low, high = (ticks.place(v) for v in (point.value, point.low, point.high))
        return replace(point, value=value, low=low, high=high, y=y)

    # Published symbols lie over the run's own dot, which is larger.
    return Dots({name: [placed(point) for point in line] for name, line in lines.items()}, ticks.ticks, height)


def curves(summary: Summary, which: Literal["pass_at", "maj_at"]) -> dict[str, Any]:
    """Accuracy over k, k on a log axis: a line for each benchmark with more than one sample, and for the average."""
    lines: list[tuple[str, Accuracies]] = [(b.name, b.accuracies) for b in summary.benchmarks]
    lines += [(AVERAGE, summary.average)] if summary.average else []
    found = [(i, name, getattr(values, which)) for i, (name, values) in enumerate(lines)]
    found = [(i, name, estimates) for i, name, estimates in found if len(estimates) > 1]
    most = max(len(estimates) for _, _, estimates in found)
    return {
        "axis": "k",
        "percent": True,
        "shaded": False,
        "zero": True,
        "most": most,
        "series": [{**_look(i, name), "name": name, **_values(estimates, most)} for i, name, estimates in found],
    }


def _look(i: int, name: str) -> dict[str, Any]:
    if name == AVERAGE:
        return {"colour": COLOURS[-1], "width": 4}
    turn, colour = divmod(i, len(COLOURS) - 1)
    dash = _DASHES[turn % len(_DASHES)]
    return {"colour": COLOURS[colour]} | ({"dash": dash} if dash else {})


def _values(estimates: Sequence[Estimate], most: int) -> dict[str, Any]:
    """The values at 1 to `most`, with their intervals where they are known."""

    def padded(values: Sequence[float | None]) -> list[float | int | None]:
        known = [np.nan if value is None else value for value in values]
        return rounded([*known, *[np.nan] * (most - len(known))], 4)

    found = {"values": padded([e.value for e in estimates])}
    if all(e.low is not None and e.high is not None for e in estimates):
        found |= {"low": padded([e.low for e in estimates]), "high": padded([e.high for e in estimates])}
    return found


def lengths(judged: Sequence[Judged]) -> Histogram:
    """Stacked histograms of the lengths of right and wrong responses."""
    longest = max(1, *(one.num_tokens for one in judged))
    edges = np.linspace(0, longest, min(_BINS, longest) + 1)
    counts = {
        name: np.histogram([one.num_tokens for one in judged if one.correct == right], edges)[0]
        for name, right in (("right", True), ("wrong", False))
    }
    highest = ticks_within(0, float((counts["right"] + counts["wrong"]).max()), wanted=4, whole=True)
    tokens = ticks_within(0, longest, end=longest, whole=True)
    pixels = HISTOGRAM_HEIGHT / 100
    bars = [
        Bar(
            left=tokens.place(low), width=tokens.place(high) - tokens.place(low), right=highest.place(right) * pixels,
            wrong=highest.place(wrong) * pixels,
            text=f"{low:,.0f} to {high:,.0f} tokens: {right:,} right, {wrong:,} wrong",
        )
        for low, high, right, wrong in zip(edges[:-1], edges[1:], counts["right"], counts["wrong"], strict=True)
        if right + wrong
    ]  # fmt: skip
    heights = [replace(tick, place=tick.place * pixels) for tick in highest.ticks]
    totals = {name: int(found.sum()) for name, found in counts.items()}
    return Histogram(bars, tokens.ticks, heights, totals, {"right": COLOURS[2], "wrong": COLOURS[4]})
