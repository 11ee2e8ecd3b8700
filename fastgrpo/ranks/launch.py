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
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from fastgrpo.command_line import exit_codes
from fastgrpo.command_line.ending import handle, tell
from fastgrpo.ranks.children import ending_with_parent
from fastgrpo.ranks.one_machine import LOOPBACK, stay_on_this_machine
from fastgrpo.ranks.rendezvous import BACKLOG, LISTENER
from fastgrpo.ranks.secret import SECRET, new_secret
from fastgrpo.ranks.signals import NotedSignals

GRACE_S = 10.0
KILL_S = 10.0
CAUSE_S = 0.5
"""Of several ranks that fail within this time, the one that was killed is the cause and the others its victims."""


class Child(Protocol):
    """What the launcher needs of a rank's process: a part of subprocess.Popen."""

    pid: int
    returncode: int

    def poll(self) -> int | None: ...
    def send_signal(self, number: int) -> None: ...
    def kill(self) -> None: ...


Start = Callable[[Sequence[str], dict[str, str], socket.socket | None], Child]


def launch(arguments: Sequence[str], num_ranks: int, start: "Start | None" = None) -> int:
    """Runs ``fastgrpo.train`` on every rank and returns the first exit code that is not 0, else 0.

    The ranks meet at a socket that is bound here, to this machine alone, and handed to the first rank. ``start``
    starts a rank with these arguments, this environment and, the first one, this socket.
    """
    start = start or start_rank
    with socket.create_server((LOOPBACK, 0), backlog=BACKLOG) as listener:
        environment = _environment(num_ranks, listener.getsockname()[1])
        children = [
            start(arguments, _of_rank(environment, rank, listener), None if rank else listener)
            for rank in range(num_ranks)
        ]
    forwarding = _Forwarding(children)
    handle(forwarding)
    return _wait(children, forwarding)


IN_CACHE = 64 * 2**20
"""Bytes of weights that a CPU's caches may hold."""


def default_num_ranks(model: str = "", most: int | None = None) -> int:
    """The visible GPUs, or two on a machine without one that has two cores; there at most ``most``.

    One, with all cores, where the weights of the local folder ``model`` are too large for a cache: every rank reads all
    of them for each token, and two ranks of one core each read them twice.
    """
    import torch

    if count := torch.cuda.device_count():
        return count
    num_bytes = sum(file.stat().st_size for file in Path(model).glob("*.safetensors")) if model else 0
    return min(2, num_cores(), most or 2) if num_bytes <= IN_CACHE else 1


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def free_port() -> int:
    """A port of this machine that was free just now."""
    with socket.socket() as s:
        s.bind((LOOPBACK, 0))
        return s.getsockname()[1]


class _Forwarding:
    """The launcher's answer to a signal: it asks the ranks to end, and a second Ctrl-C kills them.

    They get SIGTERM whatever it was: a rank that is still importing would answer a Ctrl-C with a traceback.
    """

    def __init__(self, children: Sequence[Child]) -> None:
        self.children, self.noted = children, NotedSignals()
        self.has_killed = False

    def __call__(self, number: int, _: FrameType | None) -> None:
        self.has_killed = self.has_killed or self.noted.is_second_ctrl_c(number)
        self.noted.note(number)
        for child in self.children:
            child.send_signal(signal.SIGKILL if self.has_killed else signal.SIGTERM)

    def code(self, code: int, rank: int) -> int:
        """The launch's exit code for a rank's, which is negative after a signal; then it says which."""
        if code > 0:
            return code
        if self.has_killed or (self.noted and code == -signal.SIGTERM):
            how = f"ended by {self.noted[0].name}" + (", at once after a second Ctrl-C" if self.has_killed else "")
            tell(f"{how}; what is saved is whole, and --resume goes on from the last checkpoint, if there is one")
            return exit_codes.of_signal(self.noted[0])
        tell(f"rank {rank} was ended by signal {-code}")
        return exit_codes.of_signal(-code)


def _environment(num_ranks: int, port: int) -> dict[str, str]:
    # All of torchrun's names: one that is left out would be read from an outer launch.
    ranks: dict[str, Any] = {"GROUP_RANK": 0, "WORLD_SIZE": num_ranks, "LOCAL_WORLD_SIZE": num_ranks}
    ranks |= {"MASTER_ADDR": LOOPBACK, "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": False}
    usual = {"OMP_NUM_THREADS": str(max(1, num_cores() // num_ranks)), SECRET: new_secret()}
    environment = {**usual, **os.environ, **{k: str(v) for k, v in ranks.items()}}
    stay_on_this_machine(environment)
    return environment


def _of_rank(environment: dict[str, str], rank: int, listener: socket.socket) -> dict[str, str]:
    first = {LISTENER: str(listener.fileno())} if rank == 0 else {}
    return {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank), **first}


def start_rank(
    arguments: Sequence[str], environment: dict[str, str], listener: socket.socket | None
) -> "subprocess.Popen[bytes]":
    """Starts a rank's process, which ends with this one."""
    # In sessions of their own, ranks hear a Ctrl-C once, from here, whoever sent it.
    return subprocess.Popen(
        ending_with_parent([sys.executable, "-m", "fastgrpo.train", *arguments]),
        env=environment,
        start_new_session=True,
        pass_fds=[] if listener is None else [listener.fileno()],
    )


def _wait(children: Sequence[Child], forwarding: "_Forwarding | None" = None) -> int:
    """A rank that fails takes the others with it: alone they would wait for it."""
    forwarding = forwarding or _Forwarding(children)
    while None in (codes := [child.poll() for child in children]):  # each is asked: a first one may hang for good
        if any(codes):
            time.sleep(CAUSE_S)
            failed = sorted((c.poll() or 0, rank) for rank, c in enumerate(children) if c.poll())
            _end(children, now=failed[0][0] < 0)
            return forwarding.code(*failed[0])
        time.sleep(0.05)
    failed = sorted((c.returncode, rank) for rank, c in enumerate(children) if c.returncode)
    return forwarding.code(*failed[0]) if failed else exit_codes.DONE


def _end(children: Sequence[Child], *, now: bool) -> None:
    """Returns at the latest after the two waits, whatever became of the children. ``now`` asks them to end: in its
    start a rank would wait for one that was killed."""
    for child in children if now else ():
        child.send_signal(signal.SIGTERM)
    for rank in _wait_for(children, GRACE_S):  # most end by themselves: they refused the same input, or saved
        tell(f"rank {rank} did not end by itself in {GRACE_S:g} s and is killed")
        children[rank].kill()  # ends a stopped one too
    for rank in _wait_for(children, KILL_S):
        tell(f"the kernel does not let go of rank {rank}, pid {children[rank].pid}")


def _wait_for(children: Sequence[Child], limit_s: float) -> list[int]:
    """Waits for all to end, and returns the ranks of those that have not."""
    deadline = time.monotonic() + limit_s
    while (running := [r for r, c in enumerate(children) if c.poll() is None]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return running
