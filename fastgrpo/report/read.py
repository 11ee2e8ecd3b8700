"""Reads a run folder, of a finished run or an unfinished one.

A killed run leaves incomplete lines, and a resumed run repeats steps. Both are read, and the page says what was
skipped.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastgrpo.report.rollouts import Rollouts, thin
from fastgrpo.report.words import counted

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Run:
    """The data of a run that the page shows."""

    folder: Path
    about: Record  # run.json
    summary: Record  # summary.json, empty until the run has finished
    metrics: list[Record]  # one for each step, in order
    rollouts: Rollouts
    notes: list[str]  # what could not be read

    @property
    def steps(self) -> list[int]:
        return [record["step"] for record in self.metrics]

    @property
    def num_steps(self) -> int:
        """The number of training steps, without step 0, which is the evaluation before them."""
        return sum(step > 0 for step in self.steps)

    def column(self, metric: str) -> list[float | None]:
        """The value of each step; None if it was not recorded or is not finite."""
        return [number(record.get(metric)) for record in self.metrics]

    def last(self, metric: str) -> float | None:
        """The last value of a metric."""
        return next((value for value in reversed(self.column(metric)) if value is not None), None)

    def total(self, metric: str) -> float:
        """The sum of a metric over the steps."""
        return sum(value for value in self.column(metric) if value is not None)

    def setting(self, name: str) -> Any:
        """A setting by its command-line name, such as rollout.temperature; None if run.json does not have it."""
        return mapping(self.about.get("config")).get(name)

    def published(self, name: str) -> Any:
        """An entry of what the recipe's paper published; None if there is none."""
        return mapping(self.about.get("published")).get(name)


def read_run(folder: Path) -> Run:
    """The run in a folder. Raises ValueError if there is no folder, no metrics.jsonl, or no step in it."""
    notes: list[str] = []
    metrics = [_with_names_of_today(record) for record in _read_metrics(folder, notes)]
    about = _read_object(folder / "run.json", notes)
    return Run(
        folder=folder,
        about=about,
        summary=_read_object(folder / "summary.json", notes),
        metrics=metrics,
        rollouts=thin(lambda: _read_steps(folder / "rollouts.jsonl", notes)),
        notes=list(dict.fromkeys(notes)),
    )


def _with_names_of_today(record: dict[str, Any]) -> dict[str, Any]:
    """The record of a step; a run of an earlier version called the wait for engines ``settle_s``."""
    return {**record, "drain_s": record["settle_s"]} if "settle_s" in record else record


def number(value: Any) -> float | None:
    """The value if it is a number that a chart can hold, else None."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and abs(value) < 1e300 else None


def mapping(value: Any) -> Record:
    """The value if it is a dict, else an empty one."""
    return value if isinstance(value, dict) else {}


def _read_metrics(folder: Path, notes: list[str]) -> list[Record]:
    path = folder / "metrics.jsonl"
    if not folder.is_dir():
        raise ValueError(f"there is no run folder {folder}.")
    if not path.is_file():
        raise ValueError(f"{folder} holds no metrics.jsonl: is it a run folder, and has its first step finished?")
    steps: dict[int, Record] = {}
    for record in _read_steps(path, notes):
        # A resumed run writes steps again, and an evaluation may come on a line of its own.
        known = {name: value for name, value in record.items() if value is not None}
        steps[record["step"]] = steps.get(record["step"], {}) | known
    if not steps:
        raise ValueError(f"{path} holds no step yet: run the report again after the first step.")
    return [steps[step] for step in sorted(steps)]


def _read_steps(path: Path, notes: list[str]) -> Iterator[Record]:
    """The records of a jsonl file that have a step, one by one; none if the file is missing."""
    if not path.is_file():
        return
    skipped = 0
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            record = _parse(line)
            if type(mapping(record).get("step")) is int:
                yield record
            elif line.strip():
                skipped += 1
    if skipped:
        notes.append(f"{path.name}: {counted(skipped, 'unreadable line')} skipped.")


def _read_object(path: Path, notes: list[str]) -> Record:
    if not path.is_file():
        return {}
    value = _parse(path.read_text(encoding="utf-8", errors="replace"))
    if not isinstance(value, dict):
        notes.append(f"{path.name} is unreadable and was left out.")
    return mapping(value)


def _parse(text: str) -> Any:
    """The value of JSON, or None if the text is none. NaN and Infinity become None, since browsers cannot read them."""
    try:
        return json.loads(text, parse_constant=lambda _: None, parse_float=_finite)
    except (ValueError, RecursionError):
        return None


def _finite(text: str) -> float | None:
    value = float(text)
    return value if abs(value) < float("inf") else None  # 1e999 is JSON, and infinite
