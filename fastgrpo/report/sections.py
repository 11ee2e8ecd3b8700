"""What the page draws of a run: every metric that is a number, known or not."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from fastgrpo.report.curves import CURVES, Curve
from fastgrpo.report.read import Run

RECIPE = "Recipe"
EVERYTHING_ELSE = "Everything else"
_NOT_PHASES = {"step_s", "engine_busy_s"}
"""Times that are not parts of a step."""


def sections_of(run: Run) -> dict[str, list[Curve]]:
    """Section title -> its charts, in the order of the page."""
    known = {title: [curve for curve in curves if _has_a_place(curve, run)] for title, curves in CURVES.items()}
    first, *others = known
    known = {title: [_with_other_phases(curve, run) for curve in curves] for title, curves in known.items()}
    recipe = [_of_recipe(metric) for metric in sorted(run.metrics.columns, key=_in_recipe) if _is_of_recipe(metric)]
    drawn = {metric for curves in known.values() for curve in curves for metric in curve.names}
    rest = [metric for metric in sorted(run.metrics.columns) if metric not in drawn and not _is_of_recipe(metric)]
    sections = {first: known[first], RECIPE: recipe, **{title: known[title] for title in others}}
    sections[EVERYTHING_ELSE] = [Curve(metric=metric, title=metric, unit="", small=True) for metric in rest]
    return {title: curves for title, curves in sections.items() if curves}


def column_of(run: Run, metric: str) -> np.ndarray:
    """A metric over the steps. ``rest_s`` is the time of a step that belongs to no phase."""
    if metric != "rest_s":
        return run.metrics.column(metric)
    phases = [np.nan_to_num(run.metrics.column(phase)) for phase in _phases(run.metrics.columns)]
    return np.maximum(0.0, run.metrics.column("step_s") - sum(phases))


def _has_a_place(curve: Curve, run: Run) -> bool:
    columns = [run.known(metric) for metric in curve.names]
    if curve.rare:
        return any(column.any() for column in columns)
    return not curve.optional or any(column.size for column in columns)


def _is_of_recipe(metric: str) -> bool:
    return metric.startswith(("recipe/", "reward/"))


def _in_recipe(metric: str) -> tuple[bool, str]:
    return metric.startswith("reward/"), metric


def _of_recipe(metric: str) -> Curve:
    kind, name = metric.split("/", 1)
    unit = "mean over the responses that have this part" if kind == "reward" else "as the recipe computes it"
    return Curve(metric=metric, title=f"{name}, part of the reward" if kind == "reward" else name, unit=unit)


def _phases(metrics: Iterable[str]) -> list[str]:
    """The times of a step's phases: those with a name in the chart first."""
    times = {m for m in metrics if m.endswith("_s") and not m.endswith("_per_s") and not _is_of_recipe(m)}
    named = [m for m in _stack().names if m in times]
    return [*named, *sorted(times - _NOT_PHASES - set(named))]


def _stack() -> Curve:
    return next(curve for curves in CURVES.values() for curve in curves if curve.stacked)


def _with_other_phases(curve: Curve, run: Run) -> Curve:
    """The chart of the phases, with those of this run that it does not know, and the rest of the step last."""
    if not curve.stacked:
        return curve
    names: Mapping[str, str] = curve.names
    phases = _phases(run.metrics.columns)
    others = {phase: phase.removesuffix("_s").replace("_", " ") for phase in phases if phase not in names}
    rest = names["rest_s"]
    return replace(curve, series={**{m: n for m, n in names.items() if m != "rest_s"}, **others, "rest_s": rest})
