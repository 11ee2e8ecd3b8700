"""Runs a function of a test module on several ranks, as torchrun would start them."""

import os
import subprocess
import sys
from pathlib import Path

from fastgrpo.ranks.launch import free_port

ROOT = Path(__file__).parents[1]


def run_ranks(code: str, num_ranks: int, timeout_s: float = 120.0) -> None:
    """Each rank runs `code` in a fresh interpreter with torchrun's environment. Raises AssertionError with what the
    ranks printed if one fails."""
    port = str(free_port())
    children = []
    for rank in range(num_ranks):
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_ranks, "LOCAL_WORLD_SIZE": num_ranks}
        ranks |= {"MASTER_PORT": port, "OMP_NUM_THREADS": 1}
        environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", **{k: str(v) for k, v in ranks.items()}}
        command = [sys.executable, "-c", code]
        children.append(
            subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        )
    outputs = [child.communicate(timeout=timeout_s)[0].decode() for child in children]
    assert all(child.returncode == 0 for child in children), "\n".join(outputs)
