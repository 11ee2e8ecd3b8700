"""What it costs to wait until a checkpoint, or a line of metrics, is on the disk."""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from bench.harness import print_table, write_results
from fastgrpo.json_lines import JsonLines
from fastgrpo.run.checkpoint.disk import folder_to_disk

MIB, ROUNDS, FILES = 512, 5, 8


def main(argv: Sequence[str]) -> int:
    """Writes a folder of the size of a small checkpoint, and lines of metrics. Returns 0."""
    parser = argparse.ArgumentParser("python -m bench disk_sync", description=__doc__)
    parser.add_argument("--folder", default=None, help="on the disk that is measured; a temporary one otherwise")
    parser.add_argument("--mib", type=int, default=MIB)
    parser.add_argument("--quick", action="store_true", help="one round, no result is kept")
    options = parser.parse_args(argv)
    found: dict[str, list[float]] = {"write": [], "wait for the disk": [], "a line of metrics": []}
    for _ in range(1 if options.quick else ROUNDS):
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            folder = Path(name) / "checkpoint"
            found["write"].append(_seconds(lambda folder=folder: _write(folder, options.mib)))
            found["wait for the disk"].append(_seconds(lambda folder=folder: folder_to_disk(folder)))
            lines = JsonLines(Path(name) / "metrics.jsonl")
            record = {f"metric_{i}": 0.1 * i for i in range(50)}
            found["a line of metrics"].append(_seconds(lambda lines=lines, record=record: lines.append([record])))
    medians = {what: statistics.median(times) for what, times in found.items()}
    print_table(f"A checkpoint of {options.mib} MiB", ["what", "ms"], [[w, 1000 * s] for w, s in medians.items()])
    if not options.quick:
        share = medians["wait for the disk"] / medians["write"]
        headline = [["waiting for the disk beside writing a checkpoint", f"{share:.2f}x", "0x"]]
        write_results("disk_sync", torch.device("cpu"), headline, {"mib": options.mib, "seconds": found})
    return 0


def _write(folder: Path, mib: int) -> None:
    folder.mkdir()
    content = bytes(range(256)) * (mib * (1 << 20) // FILES // 256)
    for number in range(FILES):
        (folder / f"file_{number}").write_bytes(content)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
