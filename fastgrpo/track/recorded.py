"""What a run has recorded, step by step, read from its folder while it may still grow."""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from fastgrpo.json_lines import record_of

METRICS, ROLLOUTS = "metrics.jsonl", "rollouts.jsonl"
POLL_S = 0.25


@dataclass(frozen=True)
class RecordedStep:
    number: int
    metrics: dict[str, float]
    rows: list[dict[str, Any]]  # of rollouts.jsonl
    unix_s: float  # when it would have been done, had the run done nothing but train


def recorded_steps(folder: Path, is_over: Event) -> Iterator[RecordedStep]:
    """Every step that the run has recorded, then each as it comes. Ends when the run is over and all was given."""
    metrics, rollouts = Lines(folder / METRICS), Rows(folder / ROLLOUTS)
    unix_s = time.time() - sum(r.get("step_s") or 0.0 for r in Lines(metrics.path).new())
    while True:
        is_last_look = is_over.is_set()
        for record in metrics.new():
            unix_s += record.get("step_s") or 0.0
            step = record["step"]
            yield RecordedStep(step, numbers_of(record), rollouts.of(step), unix_s)
        if is_last_look:
            return
        is_over.wait(POLL_S)


def numbers_of(record: Mapping[str, Any]) -> dict[str, float]:
    """What a tracker can draw of a step."""
    numbers = {k: v for k, v in record.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    return {k: float(v) for k, v in numbers.items() if math.isfinite(v) and k != "step"}


class Lines:
    """The records of a file that another process appends to, each once."""

    def __init__(self, path: Path) -> None:
        self.path, self.place = path, 0

    def new(self) -> Iterator[dict[str, Any]]:
        """Those that were not given yet. A line that is only half there waits."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self.place)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self.place += len(line)
                yield record_of(line, f"{self.path}, byte {self.place}")


class Rows:
    """The rows of rollouts.jsonl by their steps, which ascend."""

    def __init__(self, path: Path) -> None:
        self.lines = Lines(path)
        self.next: dict[str, Any] | None = None

    def of(self, step: int) -> list[dict[str, Any]]:
        """The rows of this step; those of earlier ones are passed over."""
        found: list[dict[str, Any]] = []
        coming = self.lines.new()
        while True:
            self.next = self.next or next(coming, None)
            if self.next is None or self.next["step"] > step:
                return found
            if self.next["step"] == step:
                found.append(self.next)
            self.next = None
