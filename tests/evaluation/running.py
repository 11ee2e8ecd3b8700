"""Evaluations of the tiny recipe's model, in this process and in others."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastgrpo.evaluate import main

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "data" / "benchmarks"
NINE = ("AIME24", "AIME25", "AMC23", "MATH-500", "Minerva", "Olympiad-Bench", "HMMT25", "BRUMO25", "CMIMC25")
TEMPLATE = "<|user|>{problem} Answer in \\boxed{}.<|assistant|>"
LIMIT_S = 300.0  # nothing takes so long unless it hangs


def settings_of(base: Path, out: Path, *more: str) -> list[str]:
    """Two samples of the sixteen held-out sums, whose responses end before the model's positions do."""
    return [
        str(base / "model"), "--benchmarks", str(base / "held_out.jsonl"), "--template", TEMPLATE, "--samples", "2",
        "--max_response_tokens", "24", "--device", "cpu", "--out", str(out), "--name", "e", "--verifier_workers", "1",
        *more,
    ]  # fmt: skip


def evaluate(base: Path, out: Path, *more: str) -> int:
    return main(settings_of(base, out, *more))


def start(arguments: list[str], **options: Any) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "fastgrpo", "evaluate", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def wait_until(ready: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    """Raises AssertionError if the process ends first, or takes too long."""
    end = time.monotonic() + LIMIT_S
    while not ready():
        assert process.poll() is None, f"ended with {process.returncode} before its time:\n{process.communicate()[0]}"
        assert time.monotonic() < end
        time.sleep(0.002)


def rows(folder: Path, kind: str, name: str = "held_out") -> list[dict[str, Any]]:
    """In order of problem and sample; of several files of one benchmark all."""
    files = [p for p in (folder / kind).glob("*.jsonl") if p.name.split(".")[0] == name]
    found = [json.loads(line) for path in files for line in path.read_bytes().splitlines()]
    return sorted(found, key=lambda row: (row["problem"], row["sample"]))


def num_lines(folder: Path, kind: str = "generations") -> int:
    return sum(path.read_bytes().count(b"\n") for path in (folder / kind).glob("*.jsonl"))
