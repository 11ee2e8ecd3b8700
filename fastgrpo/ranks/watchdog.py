"""Every phase of a run has a deadline: if a phase takes longer, the process ends and says which ranks were missing.

The waiting thread may be inside a collective, which no exception and no signal handler can interrupt. So another thread
watches the clock, and ends the process with ``os._exit``.
"""

import atexit
import contextlib
import faulthandler
import json
import math
import os
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, TypeVar, cast

import torch.distributed as dist

from fastgrpo.command_line import exit_codes

T = TypeVar("T")

STDERR = 2  # sys.stderr may be a display that waits for a lock
POLL_S = 0.1
HEARTBEAT_S = 1.0
SILENCE_S = 2.5 * HEARTBEAT_S  # a rank that sends no heartbeat for so long is stopped, dead or out of reach
ANSWER_S = 3.0  # time that the store may take to answer
REPORT_S = SILENCE_S + 2 * ANSWER_S + 3.0
BACKSTOP_S = REPORT_S + 8.0
MAX_DEADLINE_S = 1e8  # three years; faulthandler's limit is some thousand million seconds


@dataclass(frozen=True, eq=False, slots=True)
class _Phase:
    name: str
    began: float  # time.monotonic
    deadline_s: float
    setting: str
    number: int  # how often this rank entered a phase of this name, this time included

    @property
    def ends(self) -> float:
        return self.began + self.deadline_s


@dataclass(frozen=True)
class _Heartbeat:
    """What a rank writes about itself. Heartbeats are numbered, because clocks of two machines cannot be compared."""

    number: int
    process: str
    place: str  # where the rank is, in words
    since_s: float  # how long it had been there when it wrote this
    entered: dict[str, int]  # how often it entered the phases of each name

    def __str__(self) -> str:
        return f"{self.since_s:.0f} s {self.place}"


class Watchdog:
    """Ends this process with exit code 1 when a phase takes longer than its deadline.

    Args:
        store: a store that all ranks share, such as the one at which they met; None for a single process. The
            watchdog opens connections of its own to it, so other threads can go on using it.
        rank: this process's rank.
        num_ranks: the number of ranks.

    Before it ends the process, it prints on stderr the phase, its seconds, the setting that limits them, the ranks
    that have not come to the phase or give no sign of life, and the stacks of all threads. Time in which this process
    was stopped counts. If a thread never releases the interpreter lock, faulthandler ends the process some seconds
    later and prints only the stacks. In a fork of this process phases do nothing.
    """

    def __init__(self, store: dist.Store | None, rank: int, num_ranks: int) -> None:
        self._rank = rank
        self._num_ranks = num_ranks
        self._pid = os.getpid()
        self._process = f"pid {self._pid} on {socket.gethostname()}"
        self._open: tuple[_Phase, ...] = ()  # outermost first; replaced, never changed: other threads read it
        self._entered: Counter[str] = Counter()
        self._at = ("before its first phase", time.monotonic())
        self._lock = threading.RLock()  # a signal handler may enter a phase too
        self._moved = threading.Event()
        self._closing = threading.Event()
        self._heartbeats = _Heartbeats(store, num_ranks) if store is not None and num_ranks > 1 else None
        loops = [self._watch] if self._heartbeats is None else [self._watch, self._send_heartbeats]
        self._threads = [threading.Thread(target=f, name=f"watchdog{f.__name__}", daemon=True) for f in loops]
        for thread in self._threads:
            thread.start()
        # A daemon thread that returns from C++ during the interpreter's shutdown would end it with SIGABRT.
        atexit.register(self.close)

    @classmethod
    def alone(cls) -> "Watchdog":
        """A watchdog for a single process, which waits for no other."""
        return cls(None, 0, 1)

    @contextlib.contextmanager
    def phase(self, name: str, deadline_s: float | None, setting: str = "") -> Iterator[None]:
        """Ends the process if the block takes longer than ``deadline_s`` seconds.

        None sets no deadline, but other ranks see where this one is. Phases may nest, and all of them count.
        ``setting`` is the flag that gave the deadline; empty means ``--deadline.{name}_s``. A rank is missing if it
        entered phases of this name less often than this one did, so every rank must enter the phases that it shares
        with others. Costs about 50 microseconds.
        """
        if os.getpid() != self._pid or self._closing.is_set():
            yield
            return
        limit_s = math.inf if deadline_s is None else min(deadline_s, MAX_DEADLINE_S)
        entered = self._enter(name, limit_s, setting or f"--deadline.{name}_s")
        try:
            yield
        finally:
            self._leave(entered)

    def close(self) -> None:
        """Ends the threads; afterwards phases do nothing. May be called again, and is called when Python exits.

        If a deadline has passed, this does not return: the process ends.
        """
        if os.getpid() != self._pid or self._closing.is_set():
            return
        self._closing.set()
        with self._lock:
            self._open = ()
            self._move("after it was done")
        self._threads[0].join()
        for thread in self._threads[1:]:
            thread.join(ANSWER_S)
        atexit.unregister(self.close)

    def _enter(self, name: str, deadline_s: float, setting: str) -> _Phase:
        with self._lock:
            self._entered[name] += 1
            phase = _Phase(name, time.monotonic(), deadline_s, setting, self._entered[name])
            self._open = (*self._open, phase)
            self._move(f'in phase "{name}"')
        return phase

    def _leave(self, phase: _Phase) -> None:
        with self._lock:
            self._open = tuple(p for p in self._open if p is not phase)
            self._move(f'in phase "{self._open[-1].name}"' if self._open else f'after phase "{phase.name}"')

    def _move(self, place: str) -> None:
        self._at = (place, time.monotonic())
        _Backstop.set(min((p.ends for p in self._open), default=math.inf) + BACKSTOP_S)
        self._moved.set()

    def _send_heartbeats(self) -> None:
        """Writes a heartbeat every second, and whenever this rank enters or leaves a phase."""
        assert self._heartbeats is not None
        for number in range(sys.maxsize):
            closing = self._closing.is_set()
            try:
                self._heartbeats.write(self._rank, self._heartbeat(number))
            except RuntimeError:  # the store's process is gone: the launcher or a deadline will end this rank as well
                return
            if closing:
                return
            self._moved.wait(HEARTBEAT_S)
            self._moved.clear()

    def _heartbeat(self, number: int) -> _Heartbeat:
        with self._lock:
            place, arrived = self._at
            return _Heartbeat(number, self._process, place, time.monotonic() - arrived, dict(self._entered))

    def _watch(self) -> None:
        while not self._closing.wait(POLL_S):
            late = min(self._open, key=lambda phase: phase.ends, default=None)
            if late is not None and late.ends < time.monotonic():
                self._end(late)

    def _end(self, late: _Phase) -> None:
        try:
            reporter = threading.Thread(target=self._report, args=(late,), daemon=True)
            reporter.start()
            reporter.join(REPORT_S)  # stderr may be a pipe that nobody reads
        finally:
            os._exit(exit_codes.FAILED)

    def _report(self, late: _Phase) -> None:
        waited = f'{time.monotonic() - late.began:.0f} s in phase "{late.name}"'
        lines = [
            f"fastgrpo: rank {self._rank} ends: {waited}, more than {late.setting} {late.deadline_s:g}",
            *(f"  {line}" for line in self._missing(late)),
            f"Stacks of rank {self._rank} ({self._process}):",
        ]
        os.write(STDERR, ("\n".join(lines) + "\n").encode())
        faulthandler.dump_traceback(STDERR)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()

    def _missing(self, late: _Phase) -> list[str]:
        """The ranks that did not come to the phase or give no sign of life, one line each."""
        if self._heartbeats is None:
            return ["it waited for no other rank: see the stacks for what it waited"]
        earlier = self._heartbeats.read()
        if isinstance(earlier, str):
            return [earlier]
        time.sleep(SILENCE_S)
        later = self._heartbeats.read()
        if isinstance(later, str):  # it answered just now: most likely the first rank's deadline has passed as well
            return [later, *self._missing_ranks(late, earlier, {})]
        return self._missing_ranks(late, later, earlier) or [
            "every rank came to this phase and is alive: see the stacks"
        ]

    def _missing_ranks(
        self, late: _Phase, heartbeats: dict[int, _Heartbeat], earlier: dict[int, _Heartbeat]
    ) -> list[str]:
        lines = []
        for rank in range(self._num_ranks):
            last = heartbeats.get(rank)
            if rank == self._rank:
                continue
            if last is None:
                lines.append(f"missing: rank {rank}, which has given no sign of life yet")
            elif rank in earlier and last.number == earlier[rank].number:
                lines.append(f"missing: rank {rank} ({last.process}), no sign of life, last seen {last}")
            elif last.entered.get(late.name, 0) < late.number:
                lines.append(f"missing: rank {rank} ({last.process}), which is alive, {last}")
        return lines


class _Heartbeats:
    """The last heartbeats of all ranks, in a store.

    Writing and reading use a connection each, because a call locks its connection and may never return.
    """

    def __init__(self, store: dist.Store, num_ranks: int) -> None:
        self._keys = [f"fastgrpo/watchdog/{rank}" for rank in range(num_ranks)]
        self._store = cast(Any, store)  # torch's stubs lack clone; kept, because the first rank's is the server
        self._writer, self._reader = self._store.clone(), self._store.clone()

    def write(self, rank: int, heartbeat: _Heartbeat) -> None:
        self._writer.set(self._keys[rank], json.dumps(asdict(heartbeat)))

    def read(self) -> dict[int, _Heartbeat] | str:
        """The last heartbeat of each rank that has written one; if the store does not answer, a sentence about it."""
        agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)
        host = "torchrun on the first node" if agent else "rank 0"
        try:
            heartbeats = _bounded(self._read, ANSWER_S)
        except RuntimeError as error:
            return f"the store, hosted by {host}, is gone ({str(error).splitlines()[0]}): look at what {host} says"
        if heartbeats is None:
            return f"the store, hosted by {host}, does not answer: {host} is stopped, dead or out of reach"
        return heartbeats

    def _read(self) -> dict[int, _Heartbeat]:
        written = {rank: key for rank, key in enumerate(self._keys) if self._reader.check([key])}
        return {rank: _Heartbeat(**json.loads(self._reader.get(key))) for rank, key in written.items()}


class _Backstop:
    """Ends the process even while a thread keeps the interpreter lock, which faulthandler's timer does not need.

    A process has one. It is lifted for a fork: otherwise the child would wait at its exit for faulthandler's thread,
    which it does not have.
    """

    ends = math.inf  # time.monotonic

    @classmethod
    def set(cls, ends: float) -> None:
        if ends < math.inf:
            faulthandler.dump_traceback_later(max(ends - time.monotonic(), POLL_S), exit=True, file=STDERR)
        elif cls.ends < math.inf:
            faulthandler.cancel_dump_traceback_later()
        cls.ends = ends

    @classmethod
    def lift(cls) -> None:
        if cls.ends < math.inf:
            faulthandler.cancel_dump_traceback_later()

    @classmethod
    def restore(cls) -> None:
        cls.set(cls.ends)

    @classmethod
    def forget(cls) -> None:
        cls.ends = math.inf


os.register_at_fork(before=_Backstop.lift, after_in_parent=_Backstop.restore, after_in_child=_Backstop.forget)


def _bounded(work: Callable[[], T], limit_s: float) -> T | None:
    """The result of `work`, or its error raised; None if it takes longer, and then its thread goes on."""
    results: list[T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(work())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit_s)
    if errors:
        raise errors[0]
    return results[0] if results else None
