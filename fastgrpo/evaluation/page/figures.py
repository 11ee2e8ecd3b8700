"""The charts of the page, as plotly figures without a theme: page.js adds light or dark."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import plotly.graph_objects as go

from fastgrpo.evaluation.records import Judged
from fastgrpo.evaluation.same_protocol import Published
from fastgrpo.evaluation.statistics import Difference, Estimate
from fastgrpo.evaluation.summary import Accuracies, Summary
from fastgrpo.evaluation.tables import AVERAGE, averages, powers_of_two
from fastgrpo.report.figures import COLOURS

_DASHES = ("solid", "dash", "dot")
_SYMBOLS = ("diamond-open", "square-open", "triangle-up-open", "x-thin-open", "cross-thin-open", "star-open")
_BINS = 40


def accuracy(summary: Summary, published: Sequence[Published]) -> go.Figure:
    """A line for each benchmark: this evaluation's accuracy with its interval, and published ones beside it."""
    figure = _lines_of_benchmarks([(summary.name, averages(summary))])
    for i, model in enumerate(dict.fromkeys(row.model for row in published)):
        points = [row for row in published if row.model == model]
        marker = {"symbol": _SYMBOLS[i % len(_SYMBOLS)], "size": 9, "color": COLOURS[1 + i % (len(COLOURS) - 1)]}
        figure.add_scatter(
            x=[row.value for row in points], y=[row.benchmark for row in points], name=model, mode="markers",
            marker={**marker, "line": {"width": 1.5}}, hovertemplate="%{x:.2f} %",
        )  # fmt: skip
    return figure


def accuracies(runs: Mapping[str, Mapping[str, Estimate]]) -> go.Figure:
    """A line for each benchmark, a colour for each run."""
    return _lines_of_benchmarks(list(runs.items()))


def differences(runs: Mapping[str, Mapping[str, Difference]]) -> go.Figure:
    """The difference of each run to the first, in percentage points, with its interval; by run and benchmark."""
    figure = _lines_of_benchmarks(
        [(name, {benchmark: d.estimate for benchmark, d in found.items()}) for name, found in runs.items()], first=1
    )
    figure.update_xaxes(title_text="percentage points", ticksuffix="", rangemode="normal")
    figure.add_vline(x=0, line_width=1)
    return figure


def _lines_of_benchmarks(runs: Sequence[tuple[str, Mapping[str, Estimate]]], first: int = 0) -> go.Figure:
    """Dots with their intervals; several runs side by side within a benchmark's line."""
    figure = go.Figure(layout={"template": None})
    for i, (name, values) in enumerate(runs):
        colour = COLOURS[(first + i) % len(COLOURS)]
        points = list(values.values())
        figure.add_scatter(
            x=[100 * e.value for e in points], y=list(values), name=name, mode="markers", orientation="h",
            offsetgroup=str(i), marker={"size": 10, "color": colour}, hovertemplate="%{x:.2f} %",
            error_x=_bars(points, colour),
        )  # fmt: skip
    names = list(dict.fromkeys(name for _, values in runs for name in values))
    figure.update_layout(
        height=110 + max(44, 18 * len(runs)) * len(names), showlegend=True, hovermode="closest",
        scattermode="group" if len(runs) > 1 else "overlay", scattergap=0.4,
        legend={"orientation": "h", "y": 1, "yanchor": "bottom", "x": 0},
    )  # fmt: skip
    figure.update_xaxes(ticksuffix=" %", rangemode="tozero", showgrid=True, showspikes=False)
    figure.update_yaxes(categoryorder="array", categoryarray=names[::-1], showgrid=False, type="category", dtick=1)
    return figure


def _bars(points: Sequence[Estimate], colour: str) -> dict[str, object]:
    return {
        "type": "data", "symmetric": False, "color": colour, "thickness": 2, "width": 0,
        "array": [100 * ((e.value if e.high is None else e.high) - e.value) for e in points],
        "arrayminus": [100 * (e.value - (e.value if e.low is None else e.low)) for e in points],
    }  # fmt: skip


def curves(summary: Summary, which: Literal["pass_at", "maj_at"]) -> go.Figure:
    """Accuracy over k, k on a log axis: a line for each benchmark with more than one sample, and for the average."""
    figure = go.Figure(layout={"template": None})
    lines: list[tuple[str, Accuracies]] = [(b.name, b.accuracies) for b in summary.benchmarks]
    lines += [(AVERAGE, summary.average)] if summary.average else []
    most = 1
    for i, (name, values) in enumerate(lines):
        estimates: list[Estimate] = getattr(values, which)
        if len(estimates) == 1:
            continue
        most = max(most, len(estimates))
        line = {"color": COLOURS[-1], "width": 5}  # the average's
        if name != AVERAGE:
            turn, colour = divmod(i, len(COLOURS) - 1)
            line = {"color": COLOURS[colour], "width": 2, "dash": _DASHES[turn % len(_DASHES)]}
        ks = list(range(1, len(estimates) + 1))
        figure.add_scatter(
            x=ks, y=[_round(100 * e.value) for e in estimates], name=name, mode="lines", line=line,
            customdata=[_bounds(e) for e in estimates], hovertemplate="%{y:.1f} %{customdata}",
        )  # fmt: skip
    ticks = powers_of_two(most)
    figure.update_xaxes(type="log", tickvals=ticks, ticktext=[str(k) for k in ticks], title_text="k")
    figure.update_xaxes(range=[-0.02, float(np.log10(most)) + 0.02], unifiedhovertitle_text="k = %{x}")
    figure.update_yaxes(ticksuffix=" %", rangemode="tozero")
    figure.update_layout(
        height=360, showlegend=True, hovermode="x unified", legend={"orientation": "h", "y": -0.2, "yanchor": "top"}
    )
    return figure


def _bounds(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return "%"
    return f"% ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"


def lengths(judged: Sequence[Judged]) -> go.Figure:
    """Stacked histograms of the lengths of right and wrong responses."""
    figure = go.Figure(layout={"template": None})
    longest = max(one.num_tokens for one in judged)
    edges = np.linspace(0, longest, min(_BINS, max(1, longest)) + 1)
    centres = (edges[:-1] + edges[1:]) / 2
    for name, right, colour in (("right", True, COLOURS[2]), ("wrong", False, COLOURS[4])):
        counts, _ = np.histogram([one.num_tokens for one in judged if one.correct == right], edges)
        figure.add_bar(
            x=[_round(c) for c in centres], y=counts.tolist(), name=name, width=float(edges[1]),
            marker={"color": colour, "line": {"width": 0}}, hovertemplate="%{y:,}",
        )  # fmt: skip
    figure.update_layout(barmode="stack", bargap=0, hovermode="x unified", showlegend=True, height=250)
    figure.update_layout(legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom"})
    figure.update_xaxes(title_text="tokens", tickformat=",d", hoverformat=",.0f", rangemode="tozero")
    figure.update_yaxes(title_text="responses", tickformat=",d")
    return figure


def _round(value: float) -> float:
    """The value to six digits: more than a screen shows, and the page's data is half as large."""
    return float(f"{value:.6g}")
