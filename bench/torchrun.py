"""Runs commands on several ranks, by torchrun, which starts each rank in its own session and alone can end them."""

import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from bench.harness import ROOT
from fastgrpo.ranks.children import ending_with_parent

GRACE_S = 40.0
"""torchrun kills ranks that have not ended 30 s after it was told to end."""


def torchrun(num_ranks: int, *arguments: str, python: str = sys.executable) -> list[str]:
    """The command that runs ``python ARGUMENTS`` on that many ranks of this machine."""
    return [python, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_ranks), *arguments]


def run_to_end(
    command: Sequence[str], environment: Mapping[str, str], timeout_s: float | None = None, **streams: Any
) -> "subprocess.CompletedProcess[str]":
    """Like ``subprocess.run`` in the checkout, except that the ranks also end at the timeout and with this process."""
    with subprocess.Popen(
        ending_with_parent(command, signal.SIGTERM), cwd=ROOT, env=environment, text=True, **streams
    ) as process:
        try:
            output, errors = process.communicate(timeout=timeout_s)
        except BaseException:
            process.terminate()
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)
