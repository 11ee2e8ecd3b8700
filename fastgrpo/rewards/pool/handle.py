"""One worker process as the pool sees it. The methods do not wait for the process, except for its end."""

import contextlib
import math
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from itertools import islice
from typing import IO

from fastgrpo.rewards.pool import wire
from fastgrpo.rewards.pool.calls import QueuedCall

READ_BYTES = 1 << 16
REAP_TIMEOUT_S = 10.0
ASYNC_GRACE_S = 1.0
"""An async reward's own loop ends a call after timeout_s; a loop that does not is hanging after this time."""
PREFETCH_S = 0.05
"""Calls that a worker may have in hand, by the time that they take: what it has got no other worker can take."""

# Like -m fastgrpo.rewards.pool.worker, but with this process's import path: every name means the same there.
START_WORKER = "import sys; sys.path[:] = sys.argv[1:]; from fastgrpo.rewards.pool.worker import main; main()"
WORKER_ENVIRONMENT = {
    "PYTHONHASHSEED": "0",  # sympy depends on the order of sets, and a resumed run must judge alike
    "OMP_NUM_THREADS": "1",  # one BLAS thread per core takes gigabytes of address space; the pool is parallel already
}


class WorkerHandle:
    """A worker process and its pipes.

    ``pending`` has the calls that the worker has and has not judged, by their numbers; it works on the first one, or on
    all of them if its reward is async. ``gone`` becomes true when its end of the pipe closes. ``printed`` is the end of
    what it printed before it was ready, and is known after it is killed.
    """

    def __init__(self, setup: wire.Setup, start_timeout_s: float) -> None:
        self.starting = True
        self.gone = False
        self.printed = ""
        self.is_async = False
        self.pending: dict[int, QueuedCall] = {}
        self.started_at = time.monotonic()
        self._next_number = 0
        self._sending: list[QueuedCall] = []  # calls that may still be in the outbox
        self._start_timeout_s = start_timeout_s
        self._timeout_s = setup.timeout_s
        self._concurrency = setup.concurrency
        self._seconds_a_call = PREFETCH_S
        self._judged_at = 0.0  # when it last had something new to work on
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
    def deadline(self) -> float:
        """``time.monotonic`` by which it must send the next message; infinite while it has nothing to do."""
        if self.starting:
            return self.started_at + self._start_timeout_s
        return next((call.due for call in self.pending.values()), math.inf)

    @property
    def wants_to_write(self) -> bool:
        return len(self._outbox) > 0 and not self.gone

    def room(self, share: int) -> int:
        """The number of calls that it takes now, of its share of those that wait."""
        if self.starting or self.gone or self.wants_to_write or any(c.alone for c in self._in_hand()):
            return 0
        if self.is_async:
            return min(share, self._concurrency - len(self.pending))
        most = min(share, max(1, int(PREFETCH_S / self._seconds_a_call)))
        return most if 2 * len(self.pending) <= most else 0

    def mark_started(self, is_async: bool) -> None:
        """Notes that the worker is ready; it has nothing to do yet."""
        self.starting = False
        self.is_async = is_async

    def assign(self, calls: list[QueuedCall]) -> None:
        """Sends calls, of which it must have room for one or more."""
        assert not self.wants_to_write
        if not self.pending:
            self._judged_at = time.monotonic()
        for call in calls:
            call.due = math.inf
            self.pending[self._next_number] = call
            self._next_number += 1
        self._sending = calls
        self._outbox = memoryview(wire.frame(wire.CALLS, pickle.dumps([call.items for call in calls])))
        self._start_clocks()
        self._write()

    def awaits(self, number: int) -> bool:
        """Whether the next message may be about this call."""
        return number in self.pending if self.is_async else number == next(iter(self.pending), None)

    def note_judged(self, count: int) -> None:
        """Notes that so many calls of ``pending`` were judged and taken out; the time of the following one starts."""
        if count and not self.is_async:
            now = time.monotonic()
            self._seconds_a_call = max(1e-6, 0.5 * (self._seconds_a_call + (now - self._judged_at) / count))
            self._judged_at = now
            for following in self._in_hand():
                following.due = now + self._timeout_s

    def give_up_pending(self) -> tuple[list[QueuedCall], list[QueuedCall]]:
        """The calls that the worker had not judged before it left: those that it had in hand, and the others."""
        self.gone = True
        in_hand, calls = self._in_hand(), list(self.pending.values())
        self.pending.clear()
        return in_hand, calls[len(in_hand) :]

    def exchange(self) -> list[tuple[bytes, int, bytes]]:
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

    def _in_hand(self) -> list[QueuedCall]:
        """The calls that it is judging now."""
        return list(islice(self.pending.values(), None if self.is_async else 1))

    def _start_clocks(self) -> None:
        """Lets the time of the calls run that it was just given and can begin with; again while they are being sent."""
        due = time.monotonic() + self._timeout_s + (ASYNC_GRACE_S if self.is_async else 0.0)
        for call in self._in_hand():
            if call in self._sending:
                call.due = due

    def _write(self) -> None:
        while self.wants_to_write:
            try:
                self._outbox = self._outbox[os.write(self.request_fd, self._outbox) :]
            except BlockingIOError:
                return
            except BrokenPipeError:  # it is gone: the end of the other pipe shows it, after its last messages
                self._outbox = memoryview(b"")
            self._start_clocks()  # the time of sending an item is not part of its time limit


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
