"""Whether a tracker that is down costs a run any time: steps beside one that raises and one that never answers."""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.harness import ROOT, child_environment, print_table, write_results

STEPS, ROUNDS, WARM_UP = 30, 3, 5
KINDS = {"none": [], "raises": [f"{__file__}:Raises"], "never answers": [f"{__file__}:NeverAnswers"]}


class Raises:
    """A tracker whose server is not there."""

    def start(self, run: Any) -> int:
        return -1

    def rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        raise ConnectionError

    def log(self, step: int, metrics: Mapping[str, float], unix_s: float) -> None:
        raise ConnectionError

    def close(self) -> None:
        raise ConnectionError


class NeverAnswers(Raises):
    """A tracker that waits for its server for ever."""

    def log(self, step: int, metrics: Mapping[str, float], unix_s: float) -> None:
        time.sleep(10**6)


def main(argv: Sequence[str]) -> int:
    """Trains the quickstart in small, in turns with each tracker. Returns 1 if a step was not counted."""
    parser = argparse.ArgumentParser("python -m bench trackers", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round, no result is kept")
    quick = parser.parse_args(argv).quick
    rounds = 1 if quick else ROUNDS
    step_s: dict[str, list[float]] = {kind: [] for kind in KINDS}
    counted = True
    for _ in range(rounds):
        for kind, trackers in KINDS.items():
            times, counts = _run(trackers)
            step_s[kind] += times
            counted = counted and all(c["dropped"] == STEPS for c in counts.values())
    medians = {kind: statistics.median(times) for kind, times in step_s.items()}
    rows = [[kind, 1000 * s, s / medians["none"]] for kind, s in medians.items()]
    print_table("A step beside a tracker that is down", ["tracker", "ms a step", "of none"], rows)
    headline = [[f"step beside a tracker that {k}", f"{s / medians['none']:.2f}x", "1.00x"] for k, s in medians.items()]
    if not quick:
        results = {"step_s": step_s, "all_dropped_counted": counted}
        write_results("trackers", torch.device("cpu"), headline[1:], results)
    return 0 if counted else 1


def _run(trackers: Sequence[str]) -> tuple[list[float], dict[str, Any]]:
    """Seconds of each step after the first ones, and what became of the steps, by tracker."""
    with tempfile.TemporaryDirectory() as runs:
        command = [sys.executable, "-m", "fastgrpo", "train", "quickstart", "--ranks", "1", "--shrink"]
        command += ["--steps", str(STEPS), "--runs_dir", runs, *(["--track", *trackers] if trackers else [])]
        subprocess.run(command, cwd=ROOT, env=child_environment(), check=True, stdout=subprocess.DEVNULL)
        (folder,) = Path(runs).iterdir()
        metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        summary = json.loads((folder / "summary.json").read_text())
    return [m["step_s"] for m in metrics if m["step"] > WARM_UP], summary.get("trackers", {})
