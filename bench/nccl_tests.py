"""Runs the broadcast of NVIDIA's nccl-tests and reads its table, to compare it with ours.

Source of the format: https://github.com/NVIDIA/nccl-tests, src/util.cu (2.19.6), src/common.cu before 2.17.
"""

import math
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TIMEOUT_S = 300.0
TIMES = ("time", "cputime")  # the second with -C 1
WRONG = ("#wrong", "error")  # the second before 2.13


@dataclass(frozen=True)
class Side:
    """The out-of-place or in-place half of a row. ``wrong`` is None if the run did not check the values (N/A)."""

    time_us: float
    algbw_gb_per_s: float
    busbw_gb_per_s: float
    wrong: float | None


@dataclass(frozen=True)
class Row:
    size_bytes: int
    out_of_place: Side
    in_place: Side


@dataclass(frozen=True)
class Run:
    rows: tuple[Row, ...]  # at least one
    average_busbw_gb_per_s: float

    @property
    def largest(self) -> Row:
        return max(self.rows, key=lambda row: row.size_bytes)


def binary(path: Path) -> Path:
    """The path of ``broadcast_perf``, given itself or as a built checkout. Raises ValueError if there is none."""
    for candidate in (path, path / "build" / "broadcast_perf"):
        if candidate.is_file():
            return candidate
    raise ValueError(f"no broadcast_perf at {path} or in {path}/build: build nccl-tests with `make`, without MPI")


def run(program: Path, num_bytes: int, num_gpus: int, iterations: int, warmup: int) -> Run:
    """Runs one flat broadcast of about ``num_bytes`` over the GPUs of this node. Raises ValueError if it fails."""
    size = ("-b", str(num_bytes), "-e", str(num_bytes), "-g", str(num_gpus))
    command = [str(program), *size, "-n", str(iterations), "-w", str(warmup)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise ValueError(f"{' '.join(command)} took longer than {TIMEOUT_S:.0f} s") from None
    if done.returncode:
        raise ValueError(f"{' '.join(command)}: exit {done.returncode}: {(done.stdout + done.stderr)[-1000:]}")
    return parse(done.stdout)


def parse(output: str) -> Run:
    """Reads what ``broadcast_perf`` printed; lines of NCCL_DEBUG may be in between.

    Raises ValueError if there is no table, if it has no rows or a row that its header does not describe, if a value
    arrived wrong, and if the run did not end.
    """
    columns: list[str] = []
    rows: list[Row] = []
    for line in output.splitlines():
        fields = line.split()
        if fields[:2] == ["#", "size"]:
            columns = fields[1:]
        elif columns and fields and fields[0].isdigit():
            rows.append(_row(columns, fields, line))
    if not columns:
        raise ValueError(f"this is not the output of nccl-tests, there is no table in it: {output[:200]!r}")
    if not rows:
        raise ValueError("the table of nccl-tests has no rows: it failed before its first size")
    out_of_bounds, average = _footer(output, "Out of bounds values"), _footer(output, "Avg bus bandwidth")
    if out_of_bounds:
        raise ValueError(f"nccl-tests found {out_of_bounds:.0f} values out of bounds")
    return Run(tuple(rows), average)


def _row(columns: Sequence[str], fields: Sequence[str], line: str) -> Row:
    """A line by the header's names: columns before the first time, then two equal halves, then perhaps a timestamp."""
    starts = [i for i, name in enumerate(columns) if name in TIMES]
    num_fields = len(columns) + columns.count("timestamp")  # a date and a time
    if len(starts) != 2 or len(fields) != num_fields:
        raise ValueError(f"a row of nccl-tests has {len(fields)} values for the columns {' '.join(columns)}: {line!r}")
    sides = [_side(columns[start:], fields[start:], line) for start in starts]
    return Row(int(fields[0]), *sides)


def _side(columns: Sequence[str], fields: Sequence[str], line: str) -> Side:
    if tuple(columns[1:3]) != ("algbw", "busbw") or not set(columns[3:4]) & set(WRONG):
        raise ValueError(f"unknown columns of nccl-tests: {' '.join(columns)}")
    try:
        time_us, algbw, busbw = (float(value) for value in fields[:3])
        wrong = None if fields[3] == "N/A" else float(fields[3])
    except ValueError:
        raise ValueError(f"a row of nccl-tests holds what is no number: {line!r}") from None
    if not all(math.isfinite(value) and value >= 0 for value in (time_us, algbw, busbw, wrong or 0.0)):
        raise ValueError(f"a row of nccl-tests holds a number that cannot be: {line!r}")
    if wrong:
        raise ValueError(f"nccl-tests found {fields[3]} wrong values: {line!r}")
    return Side(time_us, algbw, busbw, wrong)


def _footer(output: str, name: str) -> float:
    """The number of a line like ``# Avg bus bandwidth    : 1.5``."""
    for line in output.splitlines():
        label, _, value = line.partition(":")
        if label.strip("# ") == name and value.split():
            try:
                return float(value.split()[0])
            except ValueError:
                break
    raise ValueError(f"the output of nccl-tests has no line {name!r}: the run did not come to its end")
