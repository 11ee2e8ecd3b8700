"""The rollouts that the page shows: a long run has more text than a page can hold."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from fastgrpo.pages import MAX_TEXT_BYTES, spread

_FEWEST_STEPS = 8  # so many steps are kept; if they are still too large, some of their rollouts are left out
_FIELDS = (
    "step", "prompt", "response", "answer", "correct", "reward", "parts", "advantage", "num_response_tokens",
    "finish_reason",
)  # fmt: skip
_STEP_FIRST = re.compile(rb'\s*\{\s*"step"\s*:\s*(-?\d+)\s*[,}]')

Record = dict[str, Any]
Lines = Mapping[int, list[tuple[int, int]]]  # step -> (offset, bytes) of each of its lines


@dataclass(frozen=True, kw_only=True)
class Rollouts:
    """The rollouts that the page shows, and how many the file has."""

    shown: list[Record]  # by step, ascending
    num_kept: int
    num_steps_kept: int
    num_skipped: int  # unreadable lines

    @property
    def num_steps_shown(self) -> int:
        return len({rollout["step"] for rollout in self.shown})


def read_rollouts(path: Path, budget: int = MAX_TEXT_BYTES) -> Rollouts:
    """The rollouts of evenly spread steps, the first and the last among them, in about `budget` bytes of the file.

    Only these are parsed, because the file may not fit in memory; of the others the step is read. None are shown if
    the file is missing.
    """
    if not path.is_file():
        return Rollouts(shown=[], num_kept=0, num_steps_kept=0, num_skipped=0)
    with path.open("rb") as file:
        lines, skipped = _lines_by_step(file)
        shown = []
        for step, places in _choose(lines, budget).items():
            records = [_record_at(file, *place) for place in places]
            shown += [_slim(record) for record in records if record is not None]
            damaged = [place for place, record in zip(places, records, strict=True) if record is None]
            lines[step] = [place for place in lines[step] if place not in damaged]
            skipped += len(damaged)
    kept = [step for step, places in lines.items() if places]
    return Rollouts(shown=shown, num_kept=sum(map(len, lines.values())), num_steps_kept=len(kept), num_skipped=skipped)


def _lines_by_step(file: BinaryIO) -> tuple[dict[int, list[tuple[int, int]]], int]:
    """Where the lines of each step are, and the number of those that have none."""
    lines: dict[int, list[tuple[int, int]]] = {}
    skipped = offset = 0
    for line in file:
        step = _step_of(line)
        if step is not None:
            lines.setdefault(step, []).append((offset, len(line)))
        elif line.strip():
            skipped += 1
        offset += len(line)
    return dict(sorted(lines.items())), skipped


def _step_of(line: bytes) -> int | None:
    """The step of a line; None for one that is no rollout. A whole line is not parsed where its first field says it."""
    found = _STEP_FIRST.match(line)
    if found and line.rstrip().endswith(b"}"):
        return int(found[1])
    record = _parse(line)
    return record["step"] if record else None


def _record_at(file: BinaryIO, offset: int, size: int) -> Record | None:
    file.seek(offset)
    return _parse(file.read(size))


def _parse(line: bytes) -> Record | None:
    """The record of a line, or None. NaN and infinite numbers become None, since browsers cannot read them."""
    try:
        record = json.loads(line.decode("utf-8", errors="replace"), parse_constant=lambda _: None, parse_float=_finite)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and type(record.get("step")) is int else None


def _finite(text: str) -> float | None:
    value = float(text)
    return value if abs(value) < float("inf") else None  # 1e999 is JSON, and infinite


def _choose(lines: Lines, budget: int) -> dict[int, list[tuple[int, int]]]:
    """Step -> the lines to show."""
    sizes = {step: sum(size for _, size in places) for step, places in lines.items()}
    steps = list(sizes)
    while (whole := sum(sizes[step] for step in steps)) > budget and len(steps) > _FEWEST_STEPS:
        fewer = min(len(steps) - 1, len(steps) * budget // whole)
        steps = spread(list(sizes), max(_FEWEST_STEPS, fewer))
    if whole <= budget:
        return {step: lines[step] for step in steps}
    return {step: _within(lines[step], budget // len(steps)) for step in steps}


def _within(places: list[tuple[int, int]], share: int) -> list[tuple[int, int]]:
    """Evenly spread rollouts of a step, as many as fit into `share` bytes."""
    chosen = places
    while chosen and sum(size for _, size in chosen) > share:
        chosen = spread(places, len(chosen) - 1) if len(chosen) > 1 else []
    return chosen


def _slim(record: Record) -> Record:
    return {name: record.get(name) for name in _FIELDS}
