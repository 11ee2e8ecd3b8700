"""The parts that the kernels' subjects share: rows that run in turns beside a limit, their memory and their errors."""

import argparse
import gc
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.harness import (
    PeakMemory,
    Row,
    add_only,
    chosen,
    exit_code,
    free_cached,
    interleaved,
    merged,
    now,
    num_cores,
    print_table,
    read_results,
    reason,
    run_worker,
    show_traceback,
    spread_frac,
    synchronize,
    write_results,
)

Shape = tuple[int, ...]
Outcome = dict[str, Tensor]  # values and gradients by name
Headline = list[tuple[str, str, str]]  # what, value, bar

FLOORS = {torch.float32: 1e-6, torch.bfloat16: 1e-3}
"""An error below it is rounding, even if plain torch's error is smaller."""
LIMIT = "limit"
OUT_OF_MEMORY = "out of memory"
NOT_BUILT = "not built"
PEERS = ("trl", "liger-kernel", "verl", "flash-attn", "cut-cross-entropy", "quack-kernels", "rl-kernel")


class Unavailable(RuntimeError):
    """This installation cannot run an implementation; the table shows the message."""


@dataclass(frozen=True)
class Implementation:
    name: str
    run: Callable[[Any], Outcome]  # from inputs; all of it is timed
    why_not: str = ""
    """Why it cannot run here, in a few words; empty if it can."""
    relative: bool = False
    """Whether it computes something else, so that it is timed and not compared."""


@dataclass(frozen=True)
class Table:
    """Implementations of one computation, their limit, and the oracle."""

    mode: str
    implementations: Sequence[Implementation]
    plain: str
    """The implementation in plain torch with whose error and memory the others are compared."""
    inputs: Callable[..., Any]  # (shape, device, seed) -> inputs
    oracle: Callable[[Any], Outcome]
    oracle_shape: Shape
    limit: str
    limit_work: Callable[[Any], Callable[[], Any]]
    dtype: torch.dtype = torch.float32
    restore: Callable[[Any], None] = lambda inputs: None
    """Restores the inputs after a run; not timed."""
    rotated_bytes: Callable[[Shape], int] | None = None
    """Bytes that a run moves, if they are few: then a GPU uses several inputs in turn, more than its cache holds."""


@dataclass(frozen=True)
class Subject:
    name: str
    description: str
    dimensions: str
    """The dimensions of `--shape`, such as T,D,V."""
    shapes: Mapping[str, Shape]
    """The default shapes for cpu, cuda and quick."""
    tables: Callable[[torch.device], list[Table]]
    headline: Callable[["Measured"], Headline]
    rounds: int = 5
    """The default number of rounds: more if a run takes only a millisecond."""


@dataclass(frozen=True)
class Measured:
    shape: Shape
    device: torch.device
    rows: dict[str, list[Row]]  # by mode

    def ours(self, mode: str) -> Row:
        """The first of our rows that ran, which is the backend that a user gets."""
        return next((row for row in self.rows[mode] if row["name"].startswith("ours") and "seconds" in row), {})

    def row(self, mode: str, name: str) -> Row:
        return next((row for row in self.rows[mode] if row["name"] == name), {})


def run_subject(subject: Subject, argv: Sequence[str]) -> int:
    """Measures, prints and writes.

    Returns 1 if a row of ours did not run or its error is more than twice that of plain torch, or if another row
    failed. It is no failure if another is not installed, cannot run on this device or does not fit it.
    """
    parser = _parser(subject)
    options = parser.parse_args(argv)
    options.shape = _shape(subject, options, parser)
    device = torch.device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(num_cores())
    tables = subject.tables(device)
    if options.worker:
        mode, name = options.worker
        table = next(t for t in tables if t.mode == mode)
        implementation = next(i for i in table.implementations if i.name == name)
        print(json.dumps({"peak_bytes": _own_peak(table, implementation, options.shape, device)}))
        return 0
    options.only = chosen(parser, options.only, _names(tables)) if options.only else []
    measured = Measured(options.shape, device, _kept(subject, tables, options, device, parser))
    failed: dict[str, str] = {}
    for table in tables:
        rows = _measure(subject, table, options, measured, tables)
        where = f", {table.mode}" if len(tables) > 1 else ""
        failed |= {row["name"] + where: why for row in rows if (why := _failure(row))}
    for table in tables:
        _print(subject, table, measured)
    headline = subject.headline(measured)
    print(_write(subject, tables, measured, headline, options))
    if options.quick:
        print("a small shape: the bars are for the default one")
    print(f"{subject.name}: " + "; ".join(f"{what}: {value}, bar {bar}" for what, value, bar in headline))
    return exit_code(subject.name, failed)


def _parser(subject: Subject) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"bench {subject.name}", description=subject.description)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    defaults = ", ".join(f"{','.join(map(str, s))} ({name})" for name, s in subject.shapes.items())
    parser.add_argument("--shape", help=f"{subject.dimensions}; default: {defaults}")
    parser.add_argument("--rounds", type=int, default=subject.rounds, help="runs of every row, in turns")
    parser.add_argument("--quick", action="store_true", help="a small shape, two rounds, memory of two rows")
    parser.add_argument("--output", help="NAME in SUBJECT_NAME.json, beside the results that are there already")
    add_only(parser)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    return parser


def _shape(subject: Subject, options: argparse.Namespace, parser: argparse.ArgumentParser) -> Shape:
    default = subject.shapes["quick" if options.quick else options.device]
    if options.shape is None:
        return default
    try:
        shape = tuple(int(n) for n in options.shape.split(","))
    except ValueError:
        shape = ()
    if len(shape) != len(default) or min(shape, default=0) < 1 or shape[0] % 8:
        parser.error(
            f"--shape must be {subject.dimensions}, positive, the first a multiple of 8; got {options.shape!r}"
        )
    return shape


def _names(tables: Sequence[Table]) -> list[str]:
    """The names of all rows, each once. A name of several tables means its row in each of them."""
    return list(dict.fromkeys(i.name for table in tables for i in table.implementations))


def _kept(
    subject: Subject,
    tables: Sequence[Table],
    options: argparse.Namespace,
    device: torch.device,
    parser: argparse.ArgumentParser,
) -> dict[str, list[Row]]:
    """The rows by mode that are there already, of which ``--only`` replaces some.

    Ends the program with 2 if they have another shape and cannot be compared.
    """
    found = read_results(_output(subject, options), device) if options.only else {}
    wanted = _shape_as_written(subject, options.shape)
    if found and found["shape"] != wanted:
        parser.error(
            f"--only keeps the other rows of {_output(subject, options)}.json, which are of {found['shape']} and not "
            f"of {wanted}: give --output NAME, or measure all rows anew"
        )
    return {table.mode: found.get("tables", {}).get(table.mode, {}).get("rows", []) for table in tables}


def _measure(
    subject: Subject, table: Table, options: argparse.Namespace, measured: Measured, tables: Sequence[Table]
) -> list[Row]:
    """Measures a table's rows. They are in ``measured`` and in the file as soon as they have a time."""
    wanted = [i for i in table.implementations if not options.only or i.name in options.only]
    if not wanted:
        return []
    device, kept, began = measured.device, measured.rows[table.mode], now()
    rows = [{"name": i.name, "why_not": i.why_not, "relative": i.relative, "measured": began} for i in wanted]

    def runnable() -> list[tuple[Row, Implementation]]:
        return [(row, i) for row, i in zip(rows, wanted, strict=True) if not row["why_not"]]

    def write() -> None:
        measured.rows[table.mode] = merged(kept, rows, _names([table]))
        _compare_peaks(measured.row(table.mode, table.plain), measured.rows[table.mode])
        _write(subject, tables, measured, subject.headline(measured), options)

    try:
        _compare(table, runnable(), device)
        _time(table, runnable(), options, device)
    except Exception as error:  # in the oracle, the inputs or the limit, which every row needs
        show_traceback(error)
        for row, _ in runnable():
            row["why_not"] = f"failed: {reason(error)}"
    write()
    for row, implementation in runnable():
        if not options.quick or row is runnable()[0][0] or row["name"] == table.plain:
            row |= _peak(subject, table, implementation, options, device)
            write()
    return rows


def _compare_peaks(plain: Row, rows: Sequence[Row]) -> None:
    naive = plain.get("peak_bytes")
    for row in rows:
        row["peak_of_plain"] = row["peak_bytes"] / naive if naive and row.get("peak_bytes") is not None else None


def _failure(row: Row) -> str:
    """The reason for exit code 1, or "": ours must run, be right and fit; a peer may be missing or not fit."""
    why_not, peak_error = row["why_not"], row.get("peak_error") or ""
    if row["name"].startswith("ours"):
        if why_not == NOT_BUILT:
            return ""
        differs = "" if why_not or row.get("within") else "it errs more than twice as much as plain torch"
        return why_not or differs or (peak_error and f"its memory: {peak_error}")
    if why_not:
        return why_not if why_not.startswith("failed: ") else ""
    return f"its memory: {peak_error}" if peak_error and peak_error != OUT_OF_MEMORY else ""


# Errors.


def _compare(table: Table, runnable: Sequence[tuple[Row, Implementation]], device: torch.device) -> None:
    """Adds each row's errors at the oracle's shape, and whether they are within twice plain torch's plus the floor.

    Plain torch runs here in any case, since its errors are needed; if it fails, the floor alone is the bound.
    """
    oracle = table.oracle(table.inputs(table.oracle_shape, device))

    def errors(run: Callable[[Any], Outcome]) -> dict[str, float]:
        outcome = run(table.inputs(table.oracle_shape, device))
        return {name: _error(outcome[name], exact) for name, exact in oracle.items()}

    by_name = {row["name"]: row for row, _ in runnable}
    plain = next(i for i in table.implementations if i.name == table.plain)
    measure = _attempt(by_name.get(table.plain, {}), lambda: errors(plain.run), device) or {}
    for row, i in runnable:
        if i.relative:
            _attempt(row, lambda run=i.run: run(table.inputs(table.oracle_shape, device)), device)
            continue
        found = measure if i.name == table.plain else _attempt(row, lambda run=i.run: errors(run), device)
        if found:
            row["errors"] = found
            row["within"] = all(e <= 2 * measure.get(n, 0.0) + FLOORS[table.dtype] for n, e in found.items())


def _error(got: Tensor, exact: Tensor) -> float:
    """The error relative to the oracle's norm; for a loss, which may be near 0, relative to advantages of size 1."""
    scale = exact.norm().item() if exact.dim() else max(exact.abs().item(), 1.0)
    return (got.double() - exact).norm().item() / max(scale, 1e-30)


def _attempt(row: Row, work: Callable[[], Any], device: torch.device) -> Any:
    """The result of the work; None if it fails, and then the row has the reason and the run goes on."""
    try:
        return work()
    except Exception as error:
        row["why_not"] = _why_not(error)
    free_cached(device)  # after the handler: in it the frames of the error keep the tensors
    return None


def _why_not(error: Exception) -> str:
    if isinstance(error, Unavailable):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return OUT_OF_MEMORY
    show_traceback(error)
    return f"failed: {reason(error)}"


# Time.


def _time(
    table: Table, runnable: Sequence[tuple[Row, Implementation]], options: argparse.Namespace, device: torch.device
) -> None:
    rotation = [table.inputs(options.shape, device, seed) for seed in range(_num_rotated(table, options.shape, device))]
    works = {LIMIT: _work([table.limit_work(inputs) for inputs in rotation], device)}
    by_name = {row["name"]: row for row, _ in runnable}
    for row, implementation in runnable:
        runs = [partial(implementation.run, inputs) for inputs in rotation]
        work = _attempt(row, lambda runs=runs: _tried(_work(runs, device), device), device)
        if work is not None:
            works[row["name"]] = work

    def drop(name: str, error: Exception) -> None:
        if name == LIMIT:
            raise error
        by_name[name]["why_not"] = _why_not(error)
        del works[name]  # and the tensors that it holds

    times = interleaved(
        works,
        device,
        prepare=lambda: [table.restore(inputs) for inputs in rotation],
        rounds=2 if options.quick else options.rounds,
        warmup_s=0.02 if options.quick else None,
        drop=drop,
    )
    limits = times.pop(LIMIT)
    for name, seconds in times.items():
        ratios = [s / limit for s, limit in zip(seconds, limits, strict=True)]
        by_name[name] |= {
            "seconds": statistics.median(seconds) / len(rotation),
            "spread_frac": spread_frac(seconds),
            "ratio": statistics.median(ratios),
            "ratio_spread_frac": spread_frac(ratios),
            "ratios": ratios,
        }


def _num_rotated(table: Table, shape: Shape, device: torch.device) -> int:
    if table.rotated_bytes is None or device.type == "cpu":
        return 1
    cache_bytes = torch.cuda.get_device_properties(device).L2_cache_size
    return math.ceil(4 * cache_bytes / table.rotated_bytes(shape)) + 1


def _work(runs: Sequence[Callable[[], Any]], device: torch.device) -> Callable[[], Any]:
    """One run, or all runs of a rotation in one CUDA graph: otherwise short runs would measure the host's launches."""
    if len(runs) == 1:
        return runs[0]
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):  # compiles and allocates, which is not allowed in a capture
        for run in runs:
            run()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        # Kept until the end of the capture, so that each run has outputs of its own, outside the cache.
        kept = [run() for run in runs]
    del kept
    return graph.replay


def _tried(work: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """The work, after a first run, which may fail at this size."""
    work()
    synchronize(device)
    return work


# Memory.


def _peak(
    subject: Subject, table: Table, implementation: Implementation, options: argparse.Namespace, device: torch.device
) -> Row:
    """The peak memory: on CUDA the allocator's, on a CPU resident memory in a fresh process; or ``peak_error``."""
    if device.type == "cuda":
        failure: Row = {}
        peak_bytes = _attempt(failure, lambda: _own_peak(table, implementation, options.shape, device), device)
        return {"peak_bytes": peak_bytes, "peak_error": failure.get("why_not")}
    shape = ",".join(map(str, options.shape))
    found = run_worker([subject.name, "--shape", shape, "--worker", table.mode, implementation.name])
    return {"peak_bytes": found.get("peak_bytes"), "peak_error": found.get("error")}


def _own_peak(table: Table, implementation: Implementation, shape: Shape, device: torch.device) -> int:
    """The peak in bytes above the inputs, after a small run in which libraries load what they need."""
    implementation.run(table.inputs(table.oracle_shape, device))
    inputs = table.inputs(shape, device)
    gc.collect()
    with PeakMemory(device) as peak:
        implementation.run(inputs)
        synchronize(device)
    return peak.bytes


# Report.


def _print(subject: Subject, table: Table, measured: Measured) -> None:
    columns = (
        "implementation", f"x {table.limit}", "spread", "ms", "spread", "peak MiB", "of plain", "value error",
        "gradient error", "within 2x",
    )  # fmt: skip
    shape = ", ".join(f"{d} {n:,}" for d, n in zip(subject.dimensions.split(","), measured.shape, strict=True))
    dtype = str(table.dtype).removeprefix("torch.")
    title = f"{subject.name}, {table.mode}: {shape}, {dtype}; plain: {table.plain}"
    rows = measured.rows[table.mode]
    print_table(title, columns, [_line(row) for row in rows if not row["why_not"]])
    for row in rows:
        if why := row["why_not"] or row.get("peak_error"):
            print(f"    {row['name']}: {why}")


def _line(row: Row) -> list[Any]:
    value, *gradients = row.get("errors", {}).values() or [None]
    verdict = "not compared" if row["relative"] else "yes" if row.get("within") else "DIFFERS"
    mib = None if row.get("peak_bytes") is None else row["peak_bytes"] / 2**20
    ratio_spread, spread = f"{row['ratio_spread_frac']:.0%}", f"{row['spread_frac']:.0%}"
    return [
        row["name"], f"{row['ratio']:.3f}", ratio_spread, 1e3 * row["seconds"], spread, mib, row["peak_of_plain"],
        value, max(gradients, default=None), verdict,
    ]  # fmt: skip


def _write(
    subject: Subject, tables: Sequence[Table], measured: Measured, headline: Headline, options: argparse.Namespace
) -> Path:
    results = {
        "shape": _shape_as_written(subject, measured.shape),
        "peers": {name: _version(name) for name in PEERS},
        "tables": {
            table.mode: {
                "dtype": str(table.dtype).removeprefix("torch."),
                "limit": table.limit,
                "plain": table.plain,
                "oracle_shape": table.oracle_shape,
                "floor": FLOORS[table.dtype],
                "rows": measured.rows[table.mode],
            }
            for table in tables
        },
    }
    return write_results(_output(subject, options), measured.device, headline, results)


def _output(subject: Subject, options: argparse.Namespace) -> str:
    return "_".join(part for part in (subject.name, options.output, "quick" if options.quick else "") if part)


def _shape_as_written(subject: Subject, shape: Shape) -> dict[str, int]:
    return dict(zip(subject.dimensions.split(","), shape, strict=True))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
