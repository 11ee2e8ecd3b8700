"""One verifier process as the pool sees it. No method here waits for the process, except for its end."""

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

# As -m fastgrpo.rewards.pool.worker, but every name means what it means in this process, fastgrpo's first.
START_WORKER = "import sys; sys.path[:] = sys.argv[1:]; from fastgrpo.rewards.pool.worker import main; main()"
WORKER_ENVIRONMENT = {
    "PYTHONHASHSEED": "0",  # sympy's way depends on the order of sets: a resumed run must judge alike
    "OMP_NUM_THREADS": "1",  # one BLAS thread per core takes gigabytes of address space; parallel is the pool's job
}


class WorkerHandle:
    """``pending`` are the numbers of the items that the worker holds and has not judged, the first one in hand.

    ``deadline`` (``time.monotonic``) is when it must have said the next thing; infinite while it has nothing to do.
    ``gone`` turns true when its end of the pipe closes. ``last_words`` is the end of what it printed before it was
    ready, known once it is killed.
    """

    def __init__(self, setup: wire.Setup, start_timeout_s: float) -> None:
        self.starting = True
        self.gone = False
        self.last_words = ""
        self.pending: deque[int] = deque()
        self._num_sending = 0  # of the pending ones, those in the outbox
        self.deadline = time.monotonic() + start_timeout_s
        self._timeout_s = setup.timeout_s
        self._outbox = memoryview(wire.frame(wire.SETUP, pickle.dumps(setup)))
        self._inbox = bytearray()
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # a pipe would fill up; this goes when it is closed
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

    def started(self) -> None:
        self.starting = False
        self.deadline = math.inf

    def assign(self, numbers: Sequence[int], items: list[wire.Item]) -> None:
        """Hands over a chunk; the worker must be able to take it."""
        assert self.can_take
        was_idle = not self.pending
        self.pending.extend(numbers)
        self._num_sending = len(numbers)
        self._outbox = memoryview(wire.frame(wire.ITEMS, pickle.dumps(items)))
        if was_idle:
            self._restart_clock()
        self._write()

    def judged(self) -> int:
        """Number of the item that the verdict just read belongs to; the clock of the next one starts."""
        number = self.pending.popleft()
        self._restart_clock()
        return number

    def surrender(self) -> list[int]:
        """Numbers of the items that a worker which is about to leave did not judge."""
        self.gone = True
        numbers = list(self.pending)
        self.pending.clear()
        return numbers

    def pump(self) -> list[tuple[bytes, bytes]]:
        """Writes and reads what goes without waiting; returns the frames that came.

        Reads to the end: a process that died after its last word must not look alive because of that word.
        """
        self._write()
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.reply_fd, READ_BYTES):
                self._inbox += data
            self.gone = True
        return wire.take_frames(self._inbox)

    def kill(self) -> int | None:
        """Ends the process and what it started, at once; returns its exit status (negative: the signal).

        None if the kernel has not let go of it after 10 s (a file system that hangs, say): it is gone when that ends.
        """
        # Its own group, and not reaped yet, so that the number cannot belong to anyone else. macOS forbids signals to
        # a group of which only the dead leader is left.
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
            self.last_words = _tail(self._stderr)
            self._stderr.close()

    def _restart_clock(self) -> None:
        self.deadline = time.monotonic() + self._timeout_s if self.pending else math.inf

    def _write(self) -> None:
        while self.wants_to_write:
            try:
                self._outbox = self._outbox[os.write(self.request_fd, self._outbox) :]
            except BlockingIOError:
                return
            except BrokenPipeError:  # the other pipe's end says that it is gone, after its last words
                self._outbox = memoryview(b"")
            if self.pending and len(self.pending) <= self._num_sending:
                self._restart_clock()  # the time of an item does not count its way there


def _spawn(stderr: IO[bytes]) -> subprocess.Popen[bytes]:
    """A fresh interpreter in a process group of its own: Ctrl-C is the trainer's, and what it starts dies with it."""
    pipe = subprocess.PIPE
    return subprocess.Popen(
        # -P keeps the working folder off the path while Python starts: it may hold a types.py
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
