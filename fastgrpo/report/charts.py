"""The charts of a run as the page's scripts draw them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastgrpo.pages import COLOURS, amount, counted, embed, rounded
from fastgrpo.report.curves import Curve
from fastgrpo.report.read import Run, number
from fastgrpo.report.reduce import Buckets
from fastgrpo.report.sections import column_of, sections_of

FEW = 40
"""Up to this many steps, values are marked one by one and not averaged."""
MAX_CHART_BYTES = 260_000
"""Of the numbers in a page. With the library, the style, the words and the settings it stays below 400,000."""
_POINTS = (1000, 800, 600, 450, 300, 200, 120, 60, 30)  # a chart's, the first that fits
_DIGITS_OF_STEP, _DIGITS_OF_MEAN, _DIGITS_OF_BAND = 6, 5, 3


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A curve of one run, ready for the page."""

    curve: Curve
    columns: Mapping[str, np.ndarray]  # metric -> its values, if it has any
    about: str
    published: str  # a sentence about the published values that are drawn with the curve
    band: tuple[float, float] | None  # published values
    line: float | None  # a published value

    @property
    def limits(self) -> dict[str, Any]:
        return {name: value for name, value in (("band", self.band), ("line", self.line)) if value is not None}


def charts(run: Run) -> dict[str, list[Chart]]:
    """Section title -> its charts, in the order of the page."""
    return {title: [_chart(curve, run) for curve in curves] for title, curves in sections_of(run).items()}


def window(run: Run) -> int:
    """The steps of a running mean: enough to reduce noise, few enough to show a fall. 1 averages nothing."""
    return 1 if run.num_steps <= FEW else max(5, run.num_steps // FEW)


def drawn(sections: Mapping[str, Sequence[Chart]], run: Run) -> dict[str, Any]:
    """What the scripts need to draw the charts, with as many points as fit into `MAX_CHART_BYTES`."""
    found = [chart for in_section in sections.values() for chart in in_section if chart.columns]
    data: dict[str, Any] = {}
    for num_points in _POINTS:
        data = {
            "axes": {"main": _axis(Buckets.at_most(num_points, run.metrics.steps))},
            "charts": {},
            "range": [int(run.metrics.steps[0]), int(run.metrics.steps[-1])],
            "window": window(run),
        }
        for chart in found:
            data["charts"][chart.curve.metric] = _drawn(chart, run, num_points, data["axes"])
        if len(embed(data)) <= MAX_CHART_BYTES:
            break
    return data


def _chart(curve: Curve, run: Run) -> Chart:
    columns = {metric: column_of(run, metric) for metric in curve.names}
    columns = {metric: column for metric, column in columns.items() if not np.isnan(column).all()}
    low, high = (f([f(_known(c)) for c in columns.values()]) if columns else 0.0 for f in (np.min, np.max))
    chart = {"curve": curve, "columns": columns, "about": _about(curve, columns, run), "band": None, "line": None}
    published = _published(curve, run, float(low), float(high)) if columns else {}
    return Chart(**{**chart, "published": "", **published})


def _known(column: np.ndarray) -> np.ndarray:
    return column[~np.isnan(column)]


def _axis(buckets: Buckets) -> dict[str, Any]:
    """The steps of the points; `last` only if a point stands for several steps."""
    axis: dict[str, Any] = {"first": buckets.first.tolist(), "size": buckets.size}
    return axis if buckets.size == 1 else {**axis, "last": buckets.last.tolist()}


def _drawn(chart: Chart, run: Run, num_points: int, axes: dict[str, Any]) -> dict[str, Any]:
    curve, steps = chart.curve, run.metrics.steps
    axis = "main"
    if not curve.averaged:  # of a metric that few steps have, the others are left out
        has_value = np.any([~np.isnan(column) for column in chart.columns.values()], axis=0)
        if not has_value.all():
            axis, steps = curve.metric, steps[has_value]
    elif curve.small:
        axis, num_points = "small", min(num_points, 200)
    buckets = Buckets.at_most(num_points, steps)
    axes.setdefault(axis, _axis(buckets))
    order = list(curve.names)
    series = []
    for metric, column in chart.columns.items():
        column = column if axis != curve.metric else column[has_value]
        colour = COLOURS[-1] if metric == "rest_s" else COLOURS[order.index(metric) % len(COLOURS)]
        series.append({"name": curve.names[metric], "colour": colour, **_points(buckets, column)})
    wanted = {"percent": curve.percent, "averaged": curve.averaged, "stacked": curve.stacked, "small": curve.small}
    flags = {name: True for name, value in wanted.items() if value}
    return {"axis": axis, "series": series, **flags, **chart.limits}


def _points(buckets: Buckets, column: np.ndarray) -> dict[str, Any]:
    mean, low, high = buckets.reduce(column)
    points = {"values": rounded(mean.tolist(), _DIGITS_OF_STEP if buckets.size == 1 else _DIGITS_OF_MEAN)}
    if buckets.size > 1 and np.nanmax(high - low) > 0:
        points |= {"low": rounded(low.tolist(), _DIGITS_OF_BAND), "high": rounded(high.tolist(), _DIGITS_OF_BAND)}
    return points


def _about(curve: Curve, columns: Mapping[str, np.ndarray], run: Run) -> str:
    limit = number(run.setting("rollout.max_response_tokens"))
    texts = [curve.about] if curve.about else []
    if curve.metric == "entropy" and (temperature := number(run.setting("rollout.temperature"))) is not None:
        texts.append(f"It is {temperature} here.")
    if curve.metric == "response_length" and limit is not None:
        texts.append(f"The limit is {limit:,} tokens.")
    if curve.stacked and window(run) > 1:
        texts.append(f"Each value is the mean of the last {window(run)} steps.")
    for metric in columns:
        if count := run.metrics.num_not_finite.get(metric):
            name = f"{curve.names[metric]}: not" if curve.series else "Not"
            texts.append(f"{name} a finite number in {counted(count, 'step')}, drawn as gaps.")
    return " ".join(texts)


def _published(curve: Curve, run: Run, low: float, high: float) -> dict[str, Any]:
    """The published values of this curve, and the sentence that says what they are; empty if there are none."""
    if curve.metric == "total_tokens":
        return _budget(run, high)
    bands = run.published("bands")
    band = bands.get(curve.metric) if isinstance(bands, dict) else None
    if not (isinstance(band, list) and len(band) == 2 and all(number(edge) is not None for edge in band)):
        return {}
    least, most = sorted(band)
    text = f"{least:,} to {most:,}".replace("-", "\u2212") + f" in {run.published('source') or 'an unnamed source'}"
    if _is_far(low, high, least, most):
        return {"published": f"Published: {text}, beyond this chart."}
    return {"published": f"Shaded: {text}.", "band": (least, most)}


def _budget(run: Run, spent: float) -> dict[str, Any]:
    budget, source = number(run.published("total_tokens")), run.published("total_tokens_source")
    if not budget:
        return {}
    where = f" ({source})" if source else ""  # the source of the bands is a figure, which has no budget
    text = f"{amount(budget)} tokens{where}; this run is at {spent / budget:.2%}"
    if spent < budget / 20:  # the curve would lie on the axis
        return {"published": f"Published: {text}."}
    return {"published": f"Dashed: published, {text}.", "line": budget}


def _is_far(low: float, high: float, least: float, most: float) -> bool:
    """Whether the band is so far away that the curve would look flat, as with response lengths of a small model."""
    gap = max(least - high, low - most)
    whole = max(high, most) - min(low, least)
    return gap > (most - least) / 2 and high - low < whole / 20
