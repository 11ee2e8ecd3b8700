"""``fastgrpo train``: one rank per GPU of this machine, or per core of a laptop. Several nodes: torchrun.

torchrun kills its ranks 30 s after a SIGTERM and then exits with 1 whatever they answered; here a rank may finish its
step and save, and its exit code is the command's.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from fastgrpo.ranks.children import die_with_parent

GRACE_S = 10.0
KILL_S = 10.0


def launch(arguments: Sequence[str], num_ranks: int) -> int:
    """Runs ``fastgrpo.train`` on every rank and returns the first exit code that is not 0, else 0."""
    children = [_start(arguments, rank, num_ranks, port) for port in [free_port()] for rank in range(num_ranks)]

    def forward(number: int, _: Any) -> None:
        for child in children:
            child.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, forward)
    return _wait(children)


def default_num_ranks() -> int:
    """The visible GPUs, or two on a machine without one that has two cores."""
    import torch

    return torch.cuda.device_count() or min(2, num_cores())


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _start(arguments: Sequence[str], rank: int, num_ranks: int, port: int) -> "subprocess.Popen[bytes]":
    # All of torchrun's names: one that is left out would be read from an outer launch.
    ranks: dict[str, Any] = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "MASTER_PORT": port}
    ranks |= {"WORLD_SIZE": num_ranks, "LOCAL_WORLD_SIZE": num_ranks, "MASTER_ADDR": "127.0.0.1"}
    threads = {"OMP_NUM_THREADS": max(1, num_cores() // num_ranks)}
    environment = {**{k: str(v) for k, v in threads.items()}, **os.environ, **{k: str(v) for k, v in ranks.items()}}
    command = [sys.executable, "-m", "fastgrpo.train", *arguments]
    # In sessions of their own, ranks hear a Ctrl-C once, from here, whoever sent it.
    return subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=die_with_parent)


def _wait(children: "list[subprocess.Popen[bytes]]") -> int:
    """A rank that fails takes the others with it: alone they would wait for it."""
    while None in (codes := [child.poll() for child in children]):  # each is asked: a first one may hang for good
        if any(codes):
            time.sleep(0.5)  # of several that fail, the one that was killed is the cause and the others its victims
            failed = sorted((c.poll() or 0, rank) for rank, c in enumerate(children) if c.poll())
            _end(children)
            code, rank = failed[0]
            if code < 0:
                print(f"fastgrpo: rank {rank} was ended by signal {-code}", file=sys.stderr)
            return code if code > 0 else 128 - code
        time.sleep(0.05)
    return next((c.returncode if c.returncode > 0 else 128 - c.returncode for c in children if c.returncode), 0)


def _end(children: "list[subprocess.Popen[bytes]]") -> None:
    """Returns at the latest after the two waits, whatever became of the children."""
    for rank in _wait_for(children, GRACE_S):  # most end by themselves: they refused the same input, or saved
        print(f"fastgrpo: rank {rank} did not end by itself in {GRACE_S:g} s and is killed", file=sys.stderr)
        children[rank].kill()  # ends a stopped one too
    for rank in _wait_for(children, KILL_S):
        print(f"fastgrpo: the kernel does not let go of rank {rank}, pid {children[rank].pid}", file=sys.stderr)


def _wait_for(children: "list[subprocess.Popen[bytes]]", limit_s: float) -> list[int]:
    """Waits for all to end, and returns the ranks of those that have not."""
    deadline = time.monotonic() + limit_s
    while (running := [r for r, c in enumerate(children) if c.poll() is None]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return running


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
