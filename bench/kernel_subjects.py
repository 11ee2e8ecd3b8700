"""What the kernels' subjects share: rows run in turns beside a limit, their memory, and their error against float64."""

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
    interleaved,
    num_cores,
    print_table,
    run_worker,
    spread_frac,
    synchronize,
    write_results,
)

Shape = tuple[int, ...]
Outcome = dict[str, Tensor]  # values and gradients by name
Row = dict[str, Any]
Headline = list[tuple[str, str, str]]  # what, value, bar

FLOORS = {torch.float32: 1e-6, torch.bfloat16: 1e-3}
"""Below it an error is rounding, however small plain torch's happens to be."""
LIMIT = "limit"
PEERS = ("trl", "liger-kernel", "verl", "flash-attn", "cut-cross-entropy", "quack-kernels", "rl-kernel")


class Unavailable(RuntimeError):
    """This installation cannot run it; the message is what the table shows."""


@dataclass(frozen=True)
class Implementation:
    name: str
    run: Callable[[Any], Outcome]  # from inputs; all of it is timed
    why_not: str = ""
    """Why it cannot run here, in a word."""
    relative: bool = False
    """It computes something else: timed, not compared."""


@dataclass(frozen=True)
class Table:
    """Implementations of one thing, the limit that they are held against, and the oracle."""

    mode: str
    implementations: Sequence[Implementation]
    plain: str
    """The implementation in plain torch whose error and memory are the others' measure."""
    inputs: Callable[..., Any]  # of a shape, a device and a seed
    oracle: Callable[[Any], Outcome]
    oracle_shape: Shape
    limit: str
    limit_work: Callable[[Any], Callable[[], Any]]
    dtype: torch.dtype = torch.float32
    restore: Callable[[Any], None] = lambda inputs: None
    """Undoes, untimed, what a run did to its inputs."""
    rotated_bytes: Callable[[Shape], int] | None = None
    """Bytes that a run moves where that is little: on a GPU as many inputs as exceed its cache are used in turn."""


@dataclass(frozen=True)
class Subject:
    name: str
    description: str
    dimensions: str
    """Of `--shape`, as T,D,V."""
    shapes: Mapping[str, Shape]
    """Defaults for cpu, cuda and quick."""
    tables: Callable[[torch.device], list[Table]]
    headline: Callable[["Measured"], Headline]
    rounds: int = 5
    """By default: more where a run takes a millisecond."""


@dataclass(frozen=True)
class Measured:
    shape: Shape
    device: torch.device
    rows: dict[str, list[Row]]  # by mode

    def ours(self, mode: str) -> Row:
        """The first row of ours that ran: the backend that a user gets."""
        return next((row for row in self.rows[mode] if row["name"].startswith("ours") and "seconds" in row), {})

    def row(self, mode: str, name: str) -> Row:
        return next((row for row in self.rows[mode] if row["name"] == name), {})


def run_subject(subject: Subject, argv: Sequence[str]) -> int:
    """Measures and reports. Returns 1 if ours failed anywhere, or errs more than twice as much as plain torch."""
    options = _options(subject, argv)
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
    measured = Measured(options.shape, device, {t.mode: _measure(subject, t, options, device) for t in tables})
    for table in tables:
        _print(subject, table, measured)
    headline = subject.headline(measured)
    print(_write(subject, tables, measured, headline, options))
    if options.quick:
        print("a small shape: the bars are for the default one")
    print(f"{subject.name}: " + "; ".join(f"{what}: {value}, bar {bar}" for what, value, bar in headline))
    ours = [row for rows in measured.rows.values() for row in rows if row["name"].startswith("ours")]
    return 0 if all(row["why_not"] == "not built" or (not row["why_not"] and row["within"]) for row in ours) else 1


def _options(subject: Subject, argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"bench {subject.name}", description=subject.description)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    defaults = ", ".join(f"{','.join(map(str, s))} ({name})" for name, s in subject.shapes.items())
    parser.add_argument("--shape", help=f"{subject.dimensions}; default: {defaults}")
    parser.add_argument("--rounds", type=int, default=subject.rounds, help="runs of every row, in turns")
    parser.add_argument("--quick", action="store_true", help="a small shape, two rounds, memory of two rows")
    parser.add_argument("--output", help="NAME in SUBJECT_NAME.json, beside the results that are there already")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    options.shape = _shape(subject, options, parser)
    return options


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


def _measure(subject: Subject, table: Table, options: argparse.Namespace, device: torch.device) -> list[Row]:
    rows = [{"name": i.name, "why_not": i.why_not, "relative": i.relative} for i in table.implementations]
    runnable = [(row, i) for row, i in zip(rows, table.implementations, strict=True) if not i.why_not]
    _compare(table, runnable, device)
    runnable = [(row, i) for row, i in runnable if not row["why_not"]]
    _time(table, runnable, options, device)
    runnable = [(row, i) for row, i in runnable if not row["why_not"]]
    for row, implementation in runnable:
        if not options.quick or row is runnable[0][0] or row["name"] == table.plain:
            row |= _peak(subject, table, implementation, options, device)
    naive = next((row.get("peak_bytes") for row in rows if row["name"] == table.plain), None)
    for row in rows:
        row["peak_of_plain"] = row["peak_bytes"] / naive if naive and row.get("peak_bytes") is not None else None
    return rows


# Errors.


def _compare(table: Table, runnable: Sequence[tuple[Row, Implementation]], device: torch.device) -> None:
    """Each row's errors at the oracle's shape, and whether they are within twice plain torch's plus the floor."""
    oracle = table.oracle(table.inputs(table.oracle_shape, device))
    plain: dict[str, float] = {}
    for row, implementation in sorted(runnable, key=lambda pair: pair[1].name != table.plain):
        outcome = _attempt(row, lambda run=implementation.run: run(table.inputs(table.oracle_shape, device)))
        if outcome is None or implementation.relative:
            continue
        row["errors"] = {name: _error(outcome[name], exact) for name, exact in oracle.items()}
        plain = plain or row["errors"]
        row["within"] = all(error <= 2 * plain[n] + FLOORS[table.dtype] for n, error in row["errors"].items())


def _error(got: Tensor, exact: Tensor) -> float:
    """Relative to the oracle's norm; of a loss, which may be near 0, to the advantages' size of 1."""
    scale = exact.norm().item() if exact.dim() else max(exact.abs().item(), 1.0)
    return (got.double() - exact).norm().item() / scale


def _attempt(row: Row, work: Callable[[], Any]) -> Any:
    """What the work returns, or None and the reason in the row: one peer's failure does not end the run."""
    try:
        return work()
    except Unavailable as reason:
        row["why_not"] = str(reason)
    except torch.OutOfMemoryError:
        row["why_not"] = "out of memory"
        torch.cuda.empty_cache()
    except Exception as error:
        row["why_not"] = f"failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:80]}"
    return None


# Time.


def _time(
    table: Table, runnable: Sequence[tuple[Row, Implementation]], options: argparse.Namespace, device: torch.device
) -> None:
    rotation = [table.inputs(options.shape, device, seed) for seed in range(_num_rotated(table, options.shape, device))]
    works = {LIMIT: _work([table.limit_work(inputs) for inputs in rotation], device)}
    by_name = {row["name"]: row for row, _ in runnable}
    for row, implementation in runnable:
        runs = [partial(implementation.run, inputs) for inputs in rotation]
        work = _attempt(row, lambda runs=runs: _tried(_work(runs, device), device))
        if work is not None:
            works[row["name"]] = work
    times = interleaved(
        works,
        device,
        prepare=lambda: [table.restore(inputs) for inputs in rotation],
        rounds=2 if options.quick else options.rounds,
        warmup_s=0.02 if options.quick else 0.5,
    )
    for name, seconds in times.items():
        ratios = [s / limit for s, limit in zip(seconds, times[LIMIT], strict=True)]
        if name != LIMIT:
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
    """One run, or all of a rotation from one CUDA graph: little work would be lost in the host's time to launch it."""
    if len(runs) == 1:
        return runs[0]
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):  # compiles and allocates, which a capture must not
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
    """The work, after a run that may fail at this size."""
    work()
    synchronize(device)
    return work


# Memory.


def _peak(
    subject: Subject, table: Table, implementation: Implementation, options: argparse.Namespace, device: torch.device
) -> Row:
    """CUDA: by the allocator, here. CPU: resident memory, in a fresh process."""
    if device.type == "cuda":
        return {"peak_bytes": _own_peak(table, implementation, options.shape, device)}
    shape = ",".join(map(str, options.shape))
    found = run_worker([subject.name, "--shape", shape, "--worker", table.mode, implementation.name])
    return {"peak_bytes": found.get("peak_bytes"), "peak_error": found.get("error")}


def _own_peak(table: Table, implementation: Implementation, shape: Shape, device: torch.device) -> int:
    """Bytes above the inputs, after a small run in which libraries load what they load once."""
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
        if row["why_not"]:
            print(f"    {row['name']}: {row['why_not']}")


def _line(row: Row) -> list[Any]:
    value, *gradients = row.get("errors", {}).values() or [None]
    verdict = "not compared" if row["relative"] else "yes" if row["within"] else "DIFFERS"
    mib = None if row.get("peak_bytes") is None else row["peak_bytes"] / 2**20
    ratio_spread, spread = f"{row['ratio_spread_frac']:.0%}", f"{row['spread_frac']:.0%}"
    return [
        row["name"], f"{row['ratio']:.3f}", ratio_spread, 1e3 * row["seconds"], spread, mib, row["peak_of_plain"],
        value, max(gradients, default=None), verdict,
    ]  # fmt: skip


def _write(
    subject: Subject, tables: Sequence[Table], measured: Measured, headline: Headline, options: argparse.Namespace
) -> Path:
    suffixes = [options.output or "", "quick" if options.quick else ""]
    results = {
        "shape": dict(zip(subject.dimensions.split(","), measured.shape, strict=True)),
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
    name = "_".join([subject.name, *(s for s in suffixes if s)])
    return write_results(name, measured.device, headline, results)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


# Headlines: `what` names the row of ours that it is about in place of {}.


def times_limit(measured: Measured, mode: str, what: str, bar: str) -> tuple[str, str, str]:
    """Ours over the limit."""
    row = measured.ours(mode)
    return what.format(row.get("name")), f"{row['ratio']:.2f}x" if row else "did not run", bar


def peak_gb(measured: Measured, mode: str, what: str, bar: str) -> tuple[str, str, str]:
    row = measured.ours(mode)
    peak = row.get("peak_bytes")
    return what.format(row.get("name")), "not measured" if peak is None else f"{peak / 1e9:.2f} GB", bar


def peak_of_plain(measured: Measured, mode: str, what: str, bar: str) -> tuple[str, str, str]:
    row = measured.ours(mode)
    share = row.get("peak_of_plain")
    return what.format(row.get("name")), "not measured" if share is None else f"{share:.2f}x", bar


def faster_than(measured: Measured, mode: str, other: str, what: str, bar: str) -> tuple[str, str, str]:
    """The other's time over ours, round by round."""
    ours, theirs = measured.ours(mode), measured.row(mode, other)
    what = what.format(ours.get("name"))
    if not ours.get("ratios") or not theirs.get("ratios"):
        return what, "did not run", bar
    quotients = [t / o for t, o in zip(theirs["ratios"], ours["ratios"], strict=True)]
    return what, f"{statistics.median(quotients):.1f}x", bar
