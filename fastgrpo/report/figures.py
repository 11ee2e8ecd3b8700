"""The charts of the page, as plotly figures without a theme: page.js adds light or dark."""

from collections.abc import Mapping
from dataclasses import dataclass

import plotly.graph_objects as go

from fastgrpo.report.curves import CURVES, Curve
from fastgrpo.report.read import Run, number
from fastgrpo.report.words import amount

# Readable on white and on near-black alike (contrast above 3 on both).
COLOURS = ("#3b7dd8", "#d9731a", "#2f9e6e", "#8b6fd6", "#d6567a", "#808894")
_FEW = 40  # up to this many steps, values are marked one by one and not averaged


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A curve of one run, ready for the page."""

    curve: Curve
    figure: go.Figure | None  # None if the run recorded nothing for it
    about: str
    published: str  # a sentence about the published values that are drawn with the curve
    key: Mapping[str, str]  # name -> colour, if there are several series


def charts(run: Run) -> dict[str, list[Chart]]:
    """Section title -> its charts, in the order of the page."""
    drawn = {section: [chart(curve, run) for curve in curves] for section, curves in CURVES.items()}
    return {section: [c for c in found if c.figure or not c.curve.optional] for section, found in drawn.items()}


def chart(curve: Curve, run: Run) -> Chart:
    columns = {metric: _column(run, metric) for metric in curve.names}
    values = [value for column in columns.values() for value in column if value is not None]
    figure = _figure(curve, run, columns) if values else None
    return Chart(
        curve=curve,
        figure=figure,
        about=_about(curve, run),
        published=_draw_published(figure, curve, run, values) if figure else "",
        key=_key(curve, columns) if figure and curve.series else {},
    )


def window(run: Run) -> int:
    """The steps of a running mean: enough to reduce noise, few enough to show a fall. 1 averages nothing."""
    return 1 if run.num_steps <= _FEW else max(5, run.num_steps // _FEW)


def running_mean(values: list[float | None], width: int) -> list[float | None]:
    """The mean of each value with those of the `width` - 1 steps before it; None for a step without a value."""
    means: list[float | None] = []
    for end, value in enumerate(values, start=1):
        known = [v for v in values[max(0, end - width) : end] if v is not None]
        means.append(None if value is None else sum(known) / len(known))
    return means


def _column(run: Run, metric: str) -> list[float | None]:
    """A metric over the steps. ``rest_s`` is the time of a step that belongs to no phase."""
    if metric != "rest_s":
        return run.column(metric)
    phases = [run.column(phase) for curve in CURVES["Speed"] for phase in curve.series if phase != "rest_s"]
    whole = run.column("step_s")
    return [
        None if seconds is None else max(0.0, seconds - sum(part[i] or 0.0 for part in phases))
        for i, seconds in enumerate(whole)
    ]


def _figure(curve: Curve, run: Run, columns: Mapping[str, list[float | None]]) -> go.Figure:
    figure = go.Figure(layout={"template": None})
    width = window(run) if curve.averaged else 1
    for (metric, column), colour in zip(columns.items(), COLOURS, strict=False):
        points = [(s, v) for s, v in zip(run.steps, column, strict=True) if curve.averaged or v is not None]
        if any(value is not None for _, value in points):
            _draw(figure, curve, curve.names[metric], points, colour, width)
    figure.update_xaxes(title_text="step", unifiedhovertitle_text="step %{x}", tickformat=",d")
    figure.update_yaxes(title_text=curve.unit, tickformat=curve.ticks, exponentformat="B", hoverformat=curve.hover)
    figure.update_layout(hovermode="x unified", showlegend=False, barmode="stack")
    if run.num_steps <= 5:
        figure.update_xaxes(dtick=1)  # there is no step 1.5
    if run.num_steps == 1 and min(value for column in columns.values() for value in column if value is not None) > 0:
        figure.update_yaxes(rangemode="tozero")  # around a single value, plotly would show meaningless digits
    return figure


def _key(curve: Curve, columns: Mapping[str, list[float | None]]) -> dict[str, str]:
    colours = zip(columns.items(), COLOURS, strict=False)
    return {curve.names[metric]: colour for (metric, column), colour in colours if set(column) != {None}}


def _draw(
    figure: go.Figure, curve: Curve, name: str, points: list[tuple[int, float | None]], colour: str, width: int
) -> None:
    steps, values = [step for step, _ in points], [_round(value) for _, value in points]
    if curve.stacked:
        figure.add_trace(_stacked(steps, [_round(mean) for mean in running_mean(values, width)], name, colour))
    elif width == 1:
        mode = "lines+markers" if len(points) <= _FEW else "lines"
        figure.add_scatter(x=steps, y=values, name=name, mode=mode, line={"color": colour, "width": 2})
    else:
        means = [_round(value) for value in running_mean(values, width)]
        thin, bold = {"color": colour, "width": 1}, {"color": colour, "width": 2}
        this, mean = (name, f"{name}, mean") if curve.series else ("this step", f"mean of {width}")
        figure.add_scatter(x=steps, y=values, name=this, mode="lines", line=thin, opacity=0.35)
        figure.add_scatter(x=steps, y=means, name=mean, mode="lines", line=bold)


def _stacked(steps: list[int], values: list[float | None], name: str, colour: str) -> go.Bar | go.Scatter:
    if len(steps) <= _FEW:
        return go.Bar(x=steps, y=values, name=name, marker={"color": colour, "line": {"width": 0}}, opacity=0.8)
    line = {"width": 0, "color": colour}  # with a visible edge, a phase of milliseconds would look like seconds
    return go.Scatter(
        x=steps, y=values, name=name, mode="lines", stackgroup="phases", line=line, fillcolor=colour, opacity=0.8
    )


def _round(value: float | None) -> float | None:
    """The value to six digits: more than a screen shows, and the page's data is half as large."""
    return None if value is None else float(f"{value:.6g}")


def _about(curve: Curve, run: Run) -> str:
    limit = number(run.setting("rollout.max_response_tokens"))
    if curve.metric == "entropy" and (temperature := number(run.setting("rollout.temperature"))) is not None:
        return f"{curve.about} It is {temperature} here."
    if curve.metric == "response_length" and limit is not None:
        return f"The limit is {limit:,} tokens."
    if curve.stacked and window(run) > 1:
        return f"Each value is the mean of the last {window(run)} steps."
    return curve.about


def _draw_published(figure: go.Figure, curve: Curve, run: Run, values: list[float]) -> str:
    """Draws the published values of this curve and returns their legend; empty if there are none."""
    if curve.metric == "total_tokens":
        return _draw_budget(figure, run, max(values))
    bands = run.published("bands")
    band = bands.get(curve.metric) if isinstance(bands, dict) else None
    if not (isinstance(band, list) and len(band) == 2 and all(number(edge) is not None for edge in band)):
        return ""
    low, high = sorted(band)
    text = f"{low:,} to {high:,}".replace("-", "\u2212") + f" in {run.published('source') or 'an unnamed source'}"
    if _is_far(values, low, high):
        return f"Published: {text}, beyond this chart."
    figure.add_hrect(y0=low, y1=high, line_width=0, layer="below")
    return f"Shaded: {text}."


def _draw_budget(figure: go.Figure, run: Run, spent: float) -> str:
    budget, source = number(run.published("total_tokens")), run.published("total_tokens_source")
    if not budget:
        return ""
    where = f" ({source})" if source else ""  # the source of the bands is a figure, which has no budget
    text = f"{amount(budget)} tokens{where}; this run is at {spent / budget:.2%}"
    if spent < budget / 20:  # the curve would lie on the axis
        return f"Published: {text}."
    figure.add_hline(y=budget, line_dash="dash", line_width=1.5)
    return f"Dashed: published, {text}."


def _is_far(values: list[float], low: float, high: float) -> bool:
    """Whether the band is so far away that the curve would look flat, as with response lengths of a small model."""
    gap = max(low - max(values), min(values) - high)
    whole = max(high, *values) - min(low, *values)
    return gap > (high - low) / 2 and max(values) - min(values) < whole / 20
