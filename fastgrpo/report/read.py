"""Reads a run folder, of a finished run or an unfinished one.

A killed run leaves incomplete lines, and a resumed run may repeat steps. Both are read, and the page says what was
skipped.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastgrpo.pages import counted
from fastgrpo.report.metrics import Metrics, read_metrics
from fastgrpo.report.rollouts import Rollouts, read_rollouts

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Run:
    """The data of a run that the page shows."""

    folder: Path
    about: Record  # run.json
    summary: Record  # summary.json, empty until the run has finished
    metrics: Metrics
    rollouts: Rollouts
    notes: list[str]  # what could not be read

    @property
    def num_steps(self) -> int:
        """The number of training steps, without step 0, which is the evaluation before them."""
        return int((self.metrics.steps > 0).sum())

    def known(self, metric: str) -> np.ndarray:
        """The finite values of a metric, in the order of the steps."""
        column = self.metrics.column(metric)
        return column[~np.isnan(column)]

    def last(self, metric: str) -> float | None:
        """The last value of a metric."""
        known = self.known(metric)
        return float(known[-1]) if known.size else None

    def total(self, metric: str) -> float:
        """The sum of a metric over the steps."""
        return float(self.known(metric).sum())

    def setting(self, name: str) -> Any:
        """A setting by its command-line name, such as rollout.temperature; None if run.json does not have it."""
        return mapping(self.about.get("config")).get(name)

    def published(self, name: str) -> Any:
        """An entry of what the recipe's paper published; None if there is none."""
        return mapping(self.about.get("published")).get(name)


def read_run(folder: Path) -> Run:
    """The run in a folder. Raises ValueError if there is no folder, no metrics.jsonl, or no step in it."""
    notes: list[str] = []
    metrics = read_metrics(folder)
    about = _read_object(folder / "run.json", notes)
    summary = _read_object(folder / "summary.json", notes)
    rollouts = read_rollouts(folder / "rollouts.jsonl")
    for name, skipped in (("metrics.jsonl", metrics.num_skipped), ("rollouts.jsonl", rollouts.num_skipped)):
        notes += [f"{name}: {counted(skipped, 'unreadable line')} skipped."] if skipped else []
    return Run(folder=folder, about=about, summary=summary, metrics=metrics, rollouts=rollouts, notes=notes)


def number(value: Any) -> float | None:
    """The value if it is a number that a chart can hold, else None."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and abs(value) < 1e300 else None


def mapping(value: Any) -> Record:
    """The value if it is a dict, else an empty one."""
    return value if isinstance(value, dict) else {}


def _read_object(path: Path, notes: list[str]) -> Record:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        notes.append(f"{path.name} is unreadable and was left out.")
    return mapping(value)
