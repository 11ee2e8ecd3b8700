"""Launches of `fastgrpo train` as forks of one interpreter that has imported everything: the same launcher, ranks,
signals and deaths, in a tenth of the time. Their ranks tell where they are, so that an accident meets the moment.

Only for a process that has not used torch's threads: a fork lacks them.
"""

import contextlib
import ctypes
import functools
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from socket import socket
from typing import Any

import psutil

from fastgrpo import train
from fastgrpo.command_line.command import run_command
from fastgrpo.command_line.ending import handle
from fastgrpo.ranks.children import die_with_parent
from fastgrpo.ranks.launch import launch
from fastgrpo.ranks.secret import launch_secret
from fastgrpo.run.checkpoint import Checkpointer
from fastgrpo.run.run import Run
from fastgrpo.trainer import Trainer

MARKS = "FORKS_MARKS"
HOLD = "FORKS_HOLD"
"""Environment variables: the file in which ranks note where they are; a moment that lasts a while for all of them."""
HOLD_S = 0.7
PR_SET_CHILD_SUBREAPER = 36
MOMENTS = {
    "load": (train, "_train"),
    "step": (Trainer, "step"),
    "evaluate": (Run, "_held_out"),
    "checkpoint": (Run, "_save"),
    "publish": (Checkpointer, "finish"),
    "report": (Run, "finish"),
}
"""What a rank does at each moment; ``start`` comes before all."""


class Fork:
    """A process as the launcher needs it, and the codes that it ends with."""

    def __init__(self, work: Callable[[], int]) -> None:
        self.returncode: int = None  # type: ignore[assignment]  # until it has ended, as subprocess.Popen has it
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _end_with(work)

    def poll(self) -> int | None:
        if self.returncode is None:
            with contextlib.suppress(ChildProcessError):
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, limit_s: float) -> int:
        end = time.monotonic() + limit_s
        while self.poll() is None:
            if time.monotonic() > end:
                raise TimeoutError(f"no end after {limit_s:g} s")
            time.sleep(0.005)
        return self.returncode


def _end_with(work: Callable[[], int]) -> None:
    code = 1
    try:
        die_with_parent()
        code = work()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(code)


def adopt_orphans() -> None:
    """Makes processes whose parents have died this one's children, so that none is overlooked."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def mark_moments() -> None:
    """From now on ranks note when they come to one of ``MOMENTS``."""
    for moment, (owner, name) in MOMENTS.items():
        setattr(owner, name, _marked(getattr(owner, name), moment))


def _marked(work: Any, moment: str) -> Any:
    @functools.wraps(work)
    def marked(*arguments: Any, **named: Any) -> Any:
        _mark(moment)
        return work(*arguments, **named)

    return marked


def _mark(moment: str) -> None:
    line = {"moment": moment, "rank": int(os.environ["RANK"]), "pid": os.getpid()}
    with open(os.environ[MARKS], "ab", buffering=0) as file:
        file.write(json.dumps(line).encode() + b"\n")
    if os.environ.get(HOLD) == moment:
        end = time.monotonic() + HOLD_S
        while time.monotonic() < end:
            time.sleep(0.01)


class Launch(Fork):
    """``fastgrpo train`` with these arguments. ``stdout`` is a file descriptor, None for one that is closed; standard
    error goes to ``log``."""

    def __init__(
        self, arguments: Sequence[str], num_ranks: int, log: Path, stdout: int | None = 2, hold: str = ""
    ) -> None:
        self.log, self.marks_file = log, log.with_suffix(".marks")
        self.marks_file.write_bytes(b"")
        self.processes: set[psutil.Process] = set()
        super().__init__(functools.partial(self._launch, arguments, num_ranks, stdout, hold))

    def _launch(self, arguments: Sequence[str], num_ranks: int, stdout: int | None, hold: str) -> int:
        os.setsid()
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 2)
        if stdout is None:
            os.close(1)
        else:
            os.dup2(stdout, 1)
        os.closerange(3, 256)
        os.environ[MARKS], os.environ[HOLD] = str(self.marks_file), hold
        sys.stderr = sys.__stderr__ = os.fdopen(2, "w", buffering=1, closefd=False)
        sys.stdout = sys.__stdout__ = None if stdout is None else os.fdopen(1, "w", closefd=False)  # type: ignore[misc,assignment]
        train.launch = functools.partial(launch, start=_start_rank)
        run_command(functools.partial(train.command, ["--ranks", str(num_ranks), *arguments]))

    def marks(self, moment: str = "") -> list[dict[str, Any]]:
        """What ranks have noted, of one moment or of all."""
        lines = [
            json.loads(line) for line in self.marks_file.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")
        ]
        return [line for line in lines if moment in ("", line["moment"])]

    def times(self, moment: str) -> int:
        """How often the first rank has come to a moment."""
        return sum(mark["rank"] == 0 for mark in self.marks(moment))

    def note_processes(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            self.processes |= {psutil.Process(self.pid), *psutil.Process(self.pid).children(recursive=True)}

    def find(self, whom: str) -> list[psutil.Process]:
        """The processes that are ``launcher``, ``rank 1``, ``group`` (all of them), ``verifier`` or
        ``tracker``."""
        self.note_processes()
        if whom == "launcher":
            return [psutil.Process(self.pid)]
        if whom.startswith("rank"):
            return [
                p for p in self.processes if p.pid in {m["pid"] for m in self.marks() if m["rank"] == int(whom[5:])}
            ]
        if whom == "group":
            return sorted(self.processes, key=lambda p: p.pid != self.pid)
        module = {"verifier": "rewards.pool.worker", "tracker": "fastgrpo.track"}
        return [p for p in self.processes if any(module[whom] in part for part in _command(p))]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []


def _start_rank(arguments: Sequence[str], environment: dict[str, str], listener: socket | None) -> Fork:
    def rank() -> int:
        handle(signal.SIG_DFL)  # a process that is started anew does not have its launcher's answers
        os.setsid()
        os.environ.clear()
        os.environ.update(environment)
        launch_secret.cache_clear()
        if listener is None:
            os.closerange(3, 256)
        _mark("start")
        run_command(functools.partial(train.main, arguments), is_rank=True)

    return Fork(rank)
