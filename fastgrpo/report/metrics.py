"""Reads metrics.jsonl once, line by line, into one array a metric: 50,000 steps are 25 MB and not 50,000 dicts."""

import json
import math
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

RENAMED = {"settle_s": "drain_s"}
"""What earlier versions called a metric -> its name of today."""
_LARGEST = 1e300  # of what a chart can hold
SPARSE = {"held_out_accuracy", "held_out_greedy"}
"""Metrics that most steps do not have."""


@dataclass(frozen=True)
class Metrics:
    """All steps of a run, ascending; every step stands once."""

    steps: np.ndarray  # [N] int64
    columns: Mapping[str, np.ndarray]  # metric -> [N] float64, NaN where a step has no finite value
    num_not_finite: Mapping[str, int]  # metric -> steps in which it was recorded without a finite value
    texts: Mapping[str, str]  # metric -> the last text, where it is not a number
    resumed_after: list[int]  # steps from which a run that wrote steps again went on
    num_skipped: int  # unreadable lines

    def column(self, metric: str) -> np.ndarray:  # [N]
        """The value of each step; NaN if it was not recorded or is not finite."""
        return self.columns[metric] if metric in self.columns else np.full(len(self.steps), np.nan)


def read_metrics(folder: Path) -> Metrics:
    """The metrics of the run in a folder. Raises ValueError if there is no folder, no metrics.jsonl, or no step."""
    path = folder / "metrics.jsonl"
    if not folder.is_dir():
        raise ValueError(f"there is no run folder {folder}.")
    if not path.is_file():
        raise ValueError(f"{folder} holds no metrics.jsonl: is it a run folder, and has its first step finished?")
    table = _Table()
    with path.open(encoding="utf-8", errors="replace") as lines:
        for record in _records(lines, table):
            table.add(record)
    if not table.rows:
        raise ValueError(f"{path} holds no step yet: run the report again after the first step.")
    return table.metrics()


def _records(lines: Iterator[str], table: "_Table") -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict) and type(record.get("step")) is int:
            yield record
        elif line.strip():
            table.num_skipped += 1


@dataclass
class _Table:
    """Grows by a record. A resumed run writes steps again, and an evaluation may come on a line of its own."""

    rows: dict[int, int] = field(default_factory=dict)  # step -> its place in the columns
    columns: dict[str, array] = field(default_factory=dict)
    not_finite: dict[str, set[int]] = field(default_factory=dict)  # metric -> rows
    texts: dict[str, str] = field(default_factory=dict)
    resumed_after: list[int] = field(default_factory=list)
    num_skipped: int = 0
    last_step: int = -1

    def add(self, record: dict[str, Any]) -> None:
        step = record["step"]
        if step < self.last_step:
            self.resumed_after.append(step - 1)
        self.last_step = step
        row = self.rows.setdefault(step, len(self.rows))
        for name, value in record.items():
            if type(value) is float or type(value) is int:
                self._put(name, row, value)
            elif value is None:
                self._note_gap(name, row)
            elif type(value) is str:
                self.texts[name] = value

    def _put(self, name: str, row: int, value: float) -> None:
        if not -_LARGEST < value < _LARGEST:  # NaN is not between them either
            return self._note_gap(name, row)
        if name in self.not_finite:
            self.not_finite[name].discard(row)
        column = self.columns.get(name)
        if column is None:
            column = self.columns[name] = array("d")
        if len(column) == row:
            column.append(value)
            return
        column.extend([math.nan] * (row + 1 - len(column)))
        column[row] = value

    def _note_gap(self, name: str, row: int) -> None:
        """A number that is not finite stands as null in the file. A step written again keeps the number it had."""
        has_one = row < len(self.columns.get(name, ())) and not math.isnan(self.columns[name][row])
        if name in SPARSE or has_one:
            return
        self.not_finite.setdefault(name, set()).add(row)

    def metrics(self) -> Metrics:
        steps = np.array(list(self.rows), dtype=np.int64)
        order = np.argsort(steps)
        columns = {name: self._whole(column)[order] for name, column in self.columns.items() if name != "step"}
        for old, new in RENAMED.items():
            if old in columns:
                was = columns.pop(old)
                columns[new] = np.where(np.isnan(columns[new]), was, columns[new]) if new in columns else was
        gaps = Counter({RENAMED.get(name, name): len(rows) for name, rows in self.not_finite.items() if rows})
        return Metrics(steps[order], columns, gaps, self.texts, self.resumed_after, self.num_skipped)

    def _whole(self, column: array) -> np.ndarray:
        whole = np.full(len(self.rows), np.nan)
        whole[: len(column)] = column
        return whole
