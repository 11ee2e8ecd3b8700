"""One verifier process as the pool sees it. The methods do not wait for the process, except for its end."""

import contextlib
import math
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from typing import IO

from fastgrpo.rewards.pool import wire

READ_BYTES = 1 << 16
REAP_TIMEOUT_S = 10.0

# Like -m fastgrpo.rewards.pool.worker, but with this process's import path: every name means the same there.
START_WORKER = "import sys; sys.path[:] = sys.argv[1:]; from fastgrpo.rewards.pool.worker import main; main()"
WORKER_ENVIRONMENT = {
    "PYTHONHASHSEED": "0",  # sympy depends on the order of sets, and a resumed run must judge alike
    "OMP_NUM_THREADS": "1",  # one BLAS thread per core takes gigabytes of address space; the pool is parallel already
}


class WorkerHandle:
    """A verifier process and its pipes.

    ``pending`` has the numbers of the items that the worker has and has not judged; it works on the first one.
    ``deadline`` (``time.monotonic``) is the time by which it must send the next message; infinite while it has nothing
    to do. ``gone`` becomes true when its end of the pipe closes. ``printed`` is the end of what it printed before it
    was ready, and is known after it is killed.
    """

    def __init__(self, setup: wire.Setup, start_timeout_s: float) -> None:
        self.starting = True
        self.gone = False
        self.printed = ""
        self.pending: deque[int] = deque()
        self._num_sending = 0  # pending items that may still be in the outbox
        self.deadline = time.monotonic() + start_timeout_s
        self._timeout_s = setup.timeout_s
        self._outbox = memoryview(wire.frame(wire.SETUP, pickle.dumps(setup)))
        self._inbox = bytearray()
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # a pipe would fill up; closing deletes the file
        self._process = _spawn(self._stderr)
        assert self._process.stdin is not None and self._process.stdout is not None
        self.request_fd = self._process.stdin.fileno()
        self.reply_fd = self._process.stdout.fileno()
        os.set_blocking(self.request_fd, False)
        os.set_blocking(self.reply_fd, False)

    @property
    def can_take(self) -> bool:
        return not (self.starting or self.gone or self.wants_to_write)

    @property
    def wants_to_write(self) -> bool:
        return len(self._outbox) > 0 and not self.gone

    def mark_started(self) -> None:
        """Notes that the worker is ready; it has nothing to do yet."""
        self.starting = False
        self.deadline = math.inf

    def assign(self, numbers: Sequence[int], items: list[wire.Item]) -> None:
        """Sends a chunk of items. ``can_take`` must be true."""
        assert self.can_take
        was_idle = not self.pending
        self.pending.extend(numbers)
        self._num_sending = len(numbers)
        self._outbox = memoryview(wire.frame(wire.ITEMS, pickle.dumps(items)))
        if was_idle:
            self._restart_clock()
        self._write()

    def next_judged(self) -> int:
        """The number of the item to which the next verdict belongs; the time of the following item starts."""
        number = self.pending.popleft()
        self._restart_clock()
        return number

    def give_up_pending(self) -> list[int]:
        """The numbers of the items that a worker did not judge before it leaves."""
        self.gone = True
        numbers = list(self.pending)
        self.pending.clear()
        return numbers

    def exchange(self) -> list[tuple[bytes, bytes]]:
        """Writes and reads as much as is possible without waiting; returns the frames that came.

        It reads to the end, so that a process that died after its last message does not look alive.
        """
        self._write()
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.reply_fd, READ_BYTES):
                self._inbox += data
            self.gone = True
        return wire.take_frames(self._inbox)

    def kill(self) -> int | None:
        """Kills the process and its children at once; returns its exit status (negative for a signal).

        None if the kernel has not ended it after 10 s, for instance because a file system hangs.
        """
        # The process is not reaped yet, so its number cannot belong to another one. macOS forbids signals to a group
        # of which only the dead leader is left.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
        try:
            return self._process.wait(REAP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return None
        finally:
            self.printed = _tail(self._stderr)
            self._stderr.close()

    def _restart_clock(self) -> None:
        self.deadline = time.monotonic() + self._timeout_s if self.pending else math.inf

    def _write(self) -> None:
        while self.wants_to_write:
            try:
                self._outbox = self._outbox[os.write(self.request_fd, self._outbox) :]
            except BlockingIOError:
                return
            except BrokenPipeError:  # it is gone: the end of the other pipe shows it, after its last messages
                self._outbox = memoryview(b"")
            if self.pending and len(self.pending) <= self._num_sending:
                self._restart_clock()  # the time of sending an item is not part of its time limit


def _spawn(stderr: IO[bytes]) -> subprocess.Popen[bytes]:
    """Starts a fresh interpreter in a session of its own: a Ctrl-C does not reach it, and it is killed as a group."""
    pipe = subprocess.PIPE
    return subprocess.Popen(
        # -P keeps the working folder off the path while Python starts: it may contain a types.py
        [sys.executable, "-P", "-c", START_WORKER, *sys.path],
        bufsize=0,
        stdin=pipe,
        stdout=pipe,
        stderr=stderr,
        env=os.environ | WORKER_ENVIRONMENT,
        start_new_session=True,
    )


def _tail(file: IO[bytes]) -> str:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - wire.MAX_MESSAGE_CHARS))
    return file.read().decode("utf-8", "backslashreplace").strip()
