"""What all subjects share: the machine's facts, time, peak memory, fresh processes, results and tables."""

import contextlib
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

import torch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
GIB = 2**30


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_slug(device: torch.device) -> str:
    """Folder name of a device's results: ``cpu-2-cores``, ``nvidia-h200``."""
    if device.type == "cpu":
        return f"cpu-{num_cores()}-cores"
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(device).lower()).strip("-")


def machine_facts(device: torch.device) -> dict[str, Any]:
    """What a figure depends on besides the code."""
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


def _commit() -> str:
    commit = _output("git", "rev-parse", "--short=12", "HEAD")
    if commit is None:
        return "unknown"
    return f"{commit}-dirty" if _output("git", "status", "--porcelain", "fastgrpo", "kernels", "recipes") else commit


def _driver() -> str | None:
    return _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Timing:
    median_s: float
    spread_frac: float  # (slowest - fastest) / median
    repeats: int


def timed(
    work: Callable[[], Any], device: torch.device, *, warmup_s: float = 0.5, repeats: int = 5, budget_s: float = 20.0
) -> Timing:
    """Wall-clock time of ``work``, device included: warmed up for a time, at least once, then the median of up to
    ``repeats`` runs, fewer where they would take longer than ``budget_s`` together."""
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
    warmup_s: float = 0.5,
    budget_s: float = 180.0,
) -> dict[str, list[float]]:
    """Seconds of each work in each round, one run of every work in turn: what else the machine does meets them all.

    Each is warmed up for a time, at least once. ``prepare`` comes before every run and is not timed. There are fewer
    rounds, at least one, where they would take longer than ``budget_s`` together.
    """
    for work in works.values():
        prepare()
        _warm_up(work, device, warmup_s)
    times: dict[str, list[float]] = {name: [] for name in works}
    started = time.perf_counter()
    for done in range(rounds):
        if done and (time.perf_counter() - started) * (done + 1) / done > budget_s:
            break
        for name, work in works.items():
            prepare()
            synchronize(device)
            times[name].append(_seconds(work, device))
    return times


def spread_frac(values: Sequence[float]) -> float:
    """From the smallest to the largest, over the median."""
    return (max(values) - min(values)) / statistics.median(values)


def _warm_up(work: Callable[[], Any], device: torch.device, seconds: float) -> None:
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
    return time.perf_counter() - start


class PeakMemory:
    """The most bytes that the block held at one time above what it found: ``with PeakMemory(device) as peak``.

    CUDA: the allocator's own count. CPU: the process's high-water mark of resident memory, set back before the block;
    where it cannot be set back and the block does not raise it, resident memory read every millisecond. Freed memory
    counts as long as malloc keeps it, which ``run_worker`` switches off.
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


def _reset_high_water() -> None:
    with contextlib.suppress(OSError):  # Linux has it; a sandbox may forbid it
        Path("/proc/self/clear_refs").write_text("5")


def _high_water_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# Every tensor is mapped by itself and unmapped when it is freed, so that resident memory is what is alive.
_EXACT_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_MMAP_MAX_": "1000000", "MALLOC_TRIM_THRESHOLD_": "0"}


def run_worker(arguments: Sequence[str], timeout_s: float = 300.0) -> dict[str, Any]:
    """``python -m bench ARGUMENTS`` in a fresh process, whose last line of output is JSON.

    A process that fails or takes too long gives ``{"error": its last words}``.
    """
    command = [sys.executable, "-m", "bench", *arguments]
    try:
        done = subprocess.run(
            command,
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


def child_environment() -> dict[str, str]:
    """This environment, with the checkout importable."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(p for p in paths if p)}


def write_results(subject: str, device: torch.device, headline: Sequence[Sequence[Any]], results: Any) -> Path:
    """``bench/results/<device>/<subject>.json``; ``headline`` holds rows (what, value, limit or peer) for `summary`."""
    path = RESULTS / device_slug(device) / f"{subject}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "subject": subject,
        "measured": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine_facts(device),
        "headline": [list(row) for row in headline],
        "results": results,
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


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
    """A number as a table shows it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) or (isinstance(value, float) and abs(value) >= 1000):
        return f"{value:,.0f}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
