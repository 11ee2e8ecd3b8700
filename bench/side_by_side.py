"""Several processes on one GPU, since compilation takes a core each; and work whose failure affects only its row."""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import IO, Any

import torch

from bench.harness import (
    ROOT,
    bench_command,
    child_environment,
    free_cached,
    reason,
)
from fastgrpo.ranks.children import ending_with_parent


def share_of(text: str) -> tuple[int, int]:
    """(3, 16) for ``3/16``. Raises argparse's error unless the first number is below the second."""
    share, _, shares = text.partition("/")
    if not (share.isdigit() and shares.isdigit() and int(share) < int(shares)):
        raise argparse.ArgumentTypeError(f"need I/N with I from 0 to N - 1, got {text!r}")
    return int(share), int(shares)


def attempted(work: Callable[[], Any], device: torch.device) -> tuple[Any, str]:
    """The result of the work and "", or None and why it failed: a failure ends only its own row."""
    try:
        return work(), ""
    except Exception as error:
        why_not = reason(error)
    free_cached(device)  # after the handler: in it the frames of the error keep the tensors
    return None, why_not


def run_workers(commands: Sequence[Sequence[str]], timeout_s: float) -> list[tuple[list[str], str]]:
    """Runs several ``python -m bench COMMAND`` together; for each its lines of output, and why it failed or "".

    The lines that a process printed before it failed, or was killed at the timeout, are included.
    """
    deadline = time.monotonic() + timeout_s
    with ExitStack() as stack:
        files = [(stack.enter_context(tempfile.TemporaryFile("w+")), stack.enter_context(tempfile.TemporaryFile("w+")))
                 for _ in commands]  # fmt: skip
        environment = child_environment() | {"OMP_NUM_THREADS": "1"}
        processes = [
            subprocess.Popen(
                ending_with_parent([sys.executable, *bench_command(*command)]),
                cwd=ROOT,
                env=environment,
                stdout=out,
                stderr=err,
                text=True,
            )
            for command, (out, err) in zip(commands, files, strict=True)
        ]
        try:
            ends = [_ended(process, deadline) for process in processes]
        finally:
            for process in processes:
                process.kill()
        return [
            (_lines(out), "" if end == "exit 0" else f"{end}: {(_lines(err) or [''])[-1][:160]}")
            for end, (out, err) in zip(ends, files, strict=True)
        ]


def few(shape: Sequence[int]) -> tuple[int, int, int]:
    """[rows, D, V] with fewer rows and columns, for which Triton compiles the same kernels.

    Triton compiles other kernels for sizes that are not multiples of 16, so such sizes stay as they are.
    """
    num_rows, width, vocabulary = shape
    return (
        min(num_rows, 256) if num_rows % 16 == 0 else num_rows,
        width,
        min(vocabulary, 1024) if vocabulary % 16 == 0 else vocabulary,
    )


def _ended(process: "subprocess.Popen[str]", deadline: float) -> str:
    try:
        return f"exit {process.wait(max(0.0, deadline - time.monotonic()))}"
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return "took too long"


def _lines(file: IO[str]) -> list[str]:
    file.seek(0)
    return file.read().strip().splitlines()
