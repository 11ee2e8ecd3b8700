"""The parts that all subjects share: machine facts, time, peak memory, fresh processes, rows, results, tables."""

import argparse
import contextlib
import ctypes
import gc
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

import torch

from fastgrpo.ranks.children import ending_with_parent

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
"""Folder of results. `python -m bench --results DIR` changes it, and `bench_command` passes it to child processes."""
GIB = 2**30
SHORTEST_S = 1e-9
"""The shortest time that is returned: a device without a clock gives 0 seconds, and every time is a divisor."""
WARMUP_S = {"cpu": 0.5, "cuda": 0.2}

Row = dict[str, Any]


def num_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_slug(device: torch.device) -> str:
    """Folder name of a device's results: ``cpu-2-cores``, ``nvidia-h200``."""
    if device.type == "cpu":
        return f"cpu-{num_cores()}-cores"
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(device).lower()).strip("-")


def machine_facts(device: torch.device) -> dict[str, Any]:
    """The facts that a figure depends on, besides the code."""
    facts: dict[str, Any] = {
        "device": device_slug(device),
        "cpu": _cpu_model(),
        "cores": num_cores(),
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "triton", "transformers", "flash_attn", "liger_kernel")},
        "commit": _commit(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {"gpu": properties.name, "gpu_gib": round(properties.total_memory / GIB, 1), "driver": _driver()}
    return facts


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else []
    return names[0] if names else platform.processor()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


@cache  # results are written after every row, and git is slow
def _commit() -> str:
    commit = _output("git", "rev-parse", "--short=12", "HEAD")
    if commit is None:
        return "unknown"
    return f"{commit}-dirty" if _output("git", "status", "--porcelain", "fastgrpo", "kernels", "recipes") else commit


@cache
def _driver() -> str | None:
    return _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free_cached(device: torch.device) -> None:
    """Frees the GPU memory that nothing uses any more, so that every row finds the same."""
    if device.type == "cuda":
        if "torch._dynamo" in sys.modules:
            torch._dynamo.reset()  # compiled layers keep their weights
        gc.collect()
        with contextlib.suppress(RuntimeError):  # after a broken launch every call raises: the first error is reported
            torch.cuda.empty_cache()


@dataclass(frozen=True)
class Timing:
    median_s: float
    spread_frac: float  # (slowest - fastest) / median
    repeats: int


def timed(
    work: Callable[[], Any],
    device: torch.device,
    *,
    warmup_s: float | None = None,
    repeats: int = 5,
    budget_s: float = 20.0,
) -> Timing:
    """The median wall-clock time of ``work``, device included, over up to ``repeats`` runs.

    Before them it runs for a time (`WARMUP_S`), at least once. There are fewer runs if all would take longer than
    ``budget_s``.
    """
    _warm_up(work, device, warmup_s)
    times: list[float] = []
    while len(times) < repeats and (not times or sum(times) + times[-1] <= budget_s):
        times.append(_seconds(work, device))
    return Timing(statistics.median(times), spread_frac(times), len(times))


def interleaved(
    works: Mapping[str, Callable[[], Any]],
    device: torch.device,
    *,
    prepare: Callable[[], Any] = lambda: None,
    rounds: int = 5,
    warmup_s: float | None = None,
    budget_s: float = 180.0,
    drop: Callable[[str, Exception], None] | None = None,
) -> dict[str, list[float]]:
    """Seconds of each work in each round. A round runs every work once, so other load on the machine affects all.

    Each is warmed up for a time (`WARMUP_S`), at least once. ``prepare`` is called before every run and not timed.
    There are fewer rounds, at least one, if all would take longer than ``budget_s``. A work that raises ends the
    measurement. With ``drop``, it is left out and the others go on; ``drop`` is called with its name and error, and may
    raise too.
    """
    running = dict(works)
    times: dict[str, list[float]] = {name: [] for name in works}

    def run_each(run: Callable[[str, Callable[[], Any]], None]) -> None:
        for name in list(running):
            try:
                prepare()
                run(name, running[name])
                continue
            except Exception as error:
                if drop is None:
                    raise
                drop(name, error)
            del running[name], times[name]
            free_cached(device)  # after the handler: in it the frames of the error keep the tensors

    def time_one(name: str, work: Callable[[], Any]) -> None:
        synchronize(device)
        times[name].append(_seconds(work, device))

    run_each(lambda name, work: _warm_up(work, device, warmup_s))
    started = time.perf_counter()
    for done in range(rounds):
        if done and (time.perf_counter() - started) * (done + 1) / done > budget_s:
            break
        run_each(time_one)
    return times


def spread_frac(values: Sequence[float]) -> float:
    """The difference of the largest and the smallest value, divided by the median."""
    return (max(values) - min(values)) / statistics.median(values)


def _warm_up(work: Callable[[], Any], device: torch.device, seconds: float | None) -> None:
    seconds = WARMUP_S[device.type] if seconds is None else seconds
    started = time.perf_counter()
    while True:
        work()
        synchronize(device)
        if time.perf_counter() - started >= seconds:
            return


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    synchronize(device)
    return max(time.perf_counter() - start, SHORTEST_S)


class PeakMemory:
    """The peak memory of a block above the memory in use at its start: ``with PeakMemory(device) as peak``.

    On CUDA it is the allocator's count. On a CPU it is the process's high-water mark of resident memory, which is reset
    before the block. If it cannot be reset and the block does not raise it, resident memory is read every millisecond.
    What malloc keeps of freed memory goes back before the block. What the block frees counts as long as malloc keeps
    it; ``run_worker`` makes malloc return it at once.
    """

    baseline_bytes: int
    bytes: int

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __enter__(self) -> Self:
        synchronize(self.device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.baseline_bytes = torch.cuda.memory_allocated(self.device)
        else:
            _return_freed_memory()
            _reset_high_water()
            self.baseline_bytes, self._sampled, self._mark = _resident_bytes(), 0, _high_water_bytes()
            self._done = threading.Event()
            self._sampler = threading.Thread(target=self._sample, daemon=True)
            self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device)
        else:
            self._done.set()
            self._sampler.join()
            mark = _high_water_bytes()
            peak = max(self._sampled, mark if mark > self._mark else 0)
        self.bytes = max(0, peak - self.baseline_bytes)

    def _sample(self) -> None:
        while not self._done.wait(0.001):
            self._sampled = max(self._sampled, _resident_bytes())


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _return_freed_memory() -> None:
    """A block that got its memory from what malloc has kept would not raise the resident memory."""
    with contextlib.suppress(AttributeError):  # another malloc than glibc's
        ctypes.CDLL(None).malloc_trim(0)


def _reset_high_water() -> None:
    with contextlib.suppress(OSError):  # a sandbox may forbid it
        Path("/proc/self/clear_refs").write_text("5")


def _high_water_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# Every tensor is mapped by itself and unmapped when it is freed: resident memory is the memory of living tensors.
_EXACT_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_MMAP_MAX_": "1000000", "MALLOC_TRIM_THRESHOLD_": "0"}


def run_worker(arguments: Sequence[str], timeout_s: float = 300.0) -> dict[str, Any]:
    """Runs ``python -m bench ARGUMENTS`` in a fresh process, and returns its last line of output, which is JSON.

    A process that fails or takes too long gives ``{"error": its last line}``.
    """
    command = [sys.executable, *bench_command(*arguments)]
    try:
        done = subprocess.run(
            ending_with_parent(command),
            cwd=ROOT,
            env=child_environment() | _EXACT_MALLOC,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"took longer than {timeout_s:.0f} s"}
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines() or [f"exit {done.returncode}"]
    return json.loads(lines[-1]) if done.returncode == 0 else {"error": lines[-1]}


def bench_command(*arguments: str) -> list[str]:
    """The arguments of ``python`` for another process of the benchmarks, with this one's folder of results."""
    return ["-m", "bench", "--results", str(RESULTS), *arguments]


def child_environment() -> dict[str, str]:
    """This environment, with the checkout importable."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(p for p in paths if p)}


# Rows. Each is measured on its own, may fail on its own, and may be measured again later.


def add_only(parser: argparse.ArgumentParser) -> None:
    text = "measure this row only, and keep the other rows of the results; repeatable"
    parser.add_argument("--only", action="append", metavar="NAME", help=text)


def chosen(parser: argparse.ArgumentParser, only: Sequence[str] | None, names: Sequence[str]) -> list[str]:
    """The rows of ``--only`` in the subject's order, or all rows. Ends the program with 2 for an unknown name."""
    unknown = [name for name in only or () if name not in names]
    if unknown:
        parser.error(f"--only must be the name of a row, got {unknown[0]!r}; there are\n  " + "\n  ".join(names))
    return [name for name in names if only is None or name in only]


def merged(old: Sequence[Row], new: Sequence[Row], names: Sequence[str], key: str = "name") -> list[Row]:
    """The old rows, replaced by new ones of the same name, in the order of ``names``; rows of other names come last."""
    found = {row[key]: row for row in [*old, *new]}
    ordered = [name for name in names if name in found]
    return [found[name] for name in ordered + [name for name in found if name not in names]]


def reason(error: BaseException) -> str:
    """The error in one line: its type and its first line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def show_traceback(error: BaseException) -> None:
    """Prints the last frames of an error: a row has only one line of it, and the machine may be gone later."""
    traceback.print_exception(error, limit=-4)


last_failed: dict[str, str] = {}
"""The rows that failed in this process, with their reasons, for callers that run several subjects in one process."""


def exit_code(subject: str, failed: Mapping[str, str]) -> int:
    """1 if rows failed, which are printed with their reasons, one line each; else 0."""
    last_failed.update(failed)
    sys.stdout.flush()
    for name, why in failed.items():
        print(f"bench {subject}: {name} failed: {why.removeprefix('failed: ')}", file=sys.stderr, flush=True)
    return 1 if failed else 0


# Results.


def results_path(subject: str, device: torch.device) -> Path:
    return RESULTS / device_slug(device) / f"{subject}.json"


def read_results(subject: str, device: torch.device) -> dict[str, Any]:
    """The results that `write_results` got the last time, or {}."""
    path = results_path(subject, device)
    return json.loads(path.read_text(encoding="utf-8"))["results"] if path.exists() else {}


def write_results(subject: str, device: torch.device, headline: Sequence[Sequence[Any]], results: Any) -> Path:
    """``<RESULTS>/<device>/<subject>.json``; ``headline`` holds rows (what, value, limit or peer) for `summary`.

    If the process is killed here, the file stays as it was.
    """
    path = results_path(subject, device)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "subject": subject,
        "measured": now(),
        "machine": machine_facts(device),
        "headline": [list(row) for row in headline],
        "results": results,
    }
    half = path.with_suffix(".json.part")
    half.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    half.replace(path)
    return path


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A plain text table; the first column is left-aligned, numbers are shown to three digits."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*(shown(value) for value in row))
    print(f"\n{title}")
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def shown(value: Any) -> str:
    """A value as tables show it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) or (isinstance(value, float) and abs(value) >= 1000):
        return f"{value:,.0f}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
