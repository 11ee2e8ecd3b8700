"""The engine processes, as the first trainer rank sees them: who is there, who draws what, who was lost."""

import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastgrpo.config import DeadlineConfig
from fastgrpo.rollout.remote import messages as m
from fastgrpo.rollout.remote.line import Line
from fastgrpo.types import Request, Response

log = logging.getLogger(__name__)

TICK_S = 0.1
SEND_OUT_S = 2.0  # for the last words to leave: a process that ends at once would take them with it


class EngineFailure(RuntimeError):
    """Engines were lost more often than the run allows, or did not come in time; the message says who and why."""


@dataclass
class Engine:
    """An engine process's place; the process in it may change."""

    index: int
    line: Line | None = None  # None while there is no process
    process: str = ""
    num_workers: int = 1
    heard: float = 0.0  # time.monotonic of its last word
    lost_since: float = 0.0
    version: int | None = None  # of the weights that it holds; None: not those of this run
    pending: dict[int, Request] = field(default_factory=dict)  # what it draws, or will once it is back
    share: list[Request] = field(default_factory=list)  # where requests are pinned: all that it was given together
    inbox: "deque[m.Received]" = field(default_factory=deque)
    busy_s: float = 0.0
    is_syncing: bool = False


class EnginePool:
    """Keeps engines fed and notices within seconds when one dies, from a thread of its own.

    ``pinned``: a request stays with the engine it was given to, which draws all of its share again after a restart, so
    that what is drawn does not depend on failures. Otherwise requests wait here and go, a group at a time, to the
    engine with the fewest.

    Raises EngineFailure from ``check`` and every wait once an engine was lost ``max_restarts`` times.
    """

    def __init__(
        self,
        host: str,
        num_engines: int,
        deadlines: DeadlineConfig,
        max_restarts: int,
        max_sequences: int,
        pinned: bool,
    ) -> None:
        listener, port = m.listen(host)
        self.address = m.Address(host, port, secrets.token_bytes(32))
        self.deadlines, self.max_restarts, self.max_sequences = deadlines, max_restarts, max_sequences
        self.pinned = pinned
        now = time.monotonic()
        self.engines = [Engine(i, lost_since=now) for i in range(num_engines)]
        self.supervisors: dict[int, Line] = {}
        self.num_restarts = 0
        self.lost: list[str] = []  # one line each time
        self.waiting: deque[list[Request]] = deque()  # groups that no engine has yet
        self.finished: dict[int, Response] = {}  # by request id, until somebody collects it
        self.num_redrawn = 0  # responses that came twice
        self._failure: Exception | None = None
        self._changed = threading.Condition()
        self._closing = False
        self._listener = listener
        self._known: set[int] = set()  # ids that were asked for and not collected
        self._threads = [
            threading.Thread(target=self._accept, name="engine pool: accept", daemon=True),
            threading.Thread(target=self._watch, name="engine pool: watch", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, groups: Sequence[Sequence[Request]], *, first: bool = False) -> None:
        """Hands out groups of requests; ids must be new. ``first``: before those that wait."""
        with self._changed:
            self._known.update(r.id for group in groups for r in group)
            if self.pinned:
                share = _shares(groups, len(self.engines))
                for engine, part in zip(self.engines, share, strict=True):
                    requests = [r for group in part for r in group]
                    engine.share = [*engine.share, *requests] if engine.pending else requests
                    engine.pending.update({r.id: r for r in requests})
                    if requests and engine.version is not None:
                        self._send(engine, m.Submit(requests))
            elif first:
                self.waiting.extendleft(list(group) for group in reversed(groups))
                self._deal()
            else:
                self.waiting.extend(list(group) for group in groups)
                self._deal()

    def cancel(self, ids: Iterable[int]) -> None:
        """Forgets requests wherever they are."""
        ids = set(ids)
        with self._changed:
            self._known -= ids
            self.waiting = deque(g for g in self.waiting if not ids.intersection(r.id for r in g))
            for engine in self.engines:
                mine = [i for i in engine.pending if i in ids]
                for i in mine:
                    del engine.pending[i]
                engine.share = [r for r in engine.share if r.id not in ids]
                if mine:
                    self._send(engine, m.Cancel(mine))
            for i in ids & self.finished.keys():
                del self.finished[i]

    def collect(self) -> dict[int, Response]:
        """What has finished since the last call."""
        with self._changed:
            self.check()
            done, self.finished = self.finished, {}
            self._known -= done.keys()
            return done

    def wait(self, is_over: Callable[[], bool], timeout_s: float) -> bool:
        """Until something changed and ``is_over`` says so, or the time is up. Raises EngineFailure."""
        with self._changed:
            self.check()
            over = self._changed.wait_for(lambda: self._failure is not None or is_over(), timeout_s)
            self.check()
            return over

    def check(self) -> None:
        if self._failure is not None:
            raise self._failure

    @property
    def num_drawing(self) -> int:
        """Requests that engines with this run's weights hold."""
        with self._changed:
            return sum(len(e.pending) for e in self.engines if e.version is not None)

    @property
    def present(self) -> list[Engine]:
        with self._changed:
            return [e for e in self.engines if e.line is not None]

    @property
    def unsynced(self) -> list[Engine]:
        """Engines that are there and wait for weights."""
        return [e for e in self.present if e.version is None]

    def tell(self, engine: Engine, message: Any) -> None:
        with self._changed:
            self._send(engine, message)

    def synced(self, engine: Engine, version: int) -> None:
        """The engine holds these weights, and gets what waits for it. Nothing happens if it was lost since."""
        with self._changed:
            if engine.line is None:
                return
            first, engine.version = engine.version is None, version
            if first and engine.pending:  # pinned: drawn as before, in the same company
                self._send(engine, m.Submit(engine.share))
            self._deal()

    def lose(self, engine: Engine, line: Line, why: str) -> None:
        """Gives up the process at this line, unless it is gone already: it is ended, and another started."""
        with self._changed:
            if engine.line is line:
                self._lose(engine, why)

    def expects_reply(self, engine: Engine, does: bool) -> None:
        """An engine in a sync may be silent for longer: the sync has a deadline of its own."""
        with self._changed:
            engine.is_syncing, engine.heard = does, time.monotonic()

    def take_busy_s(self) -> float:
        """Seconds that an engine has drawn since the last call, in the mean."""
        with self._changed:
            total = sum(e.busy_s for e in self.engines)
            for engine in self.engines:
                engine.busy_s = 0.0
            return total / len(self.engines)

    def close(self) -> None:
        """Tells every engine and supervisor to end, and waits a moment for those that listen."""
        with self._changed:
            self._closing = True
            lines = [e.line for e in self.engines if e.line is not None] + list(self.supervisors.values())
        for line in lines:
            line.say(m.End())
            line.say(None)
        until = time.monotonic() + SEND_OUT_S
        for line in lines:
            line.wait_until_said(max(0.0, until - time.monotonic()))
        self._listener.close()

    # What follows runs on the pool's own threads, or under its lock.

    def _accept(self) -> None:
        while not self._closing:
            try:
                connection = self._listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._welcome, args=(connection,), daemon=True).start()

    def _welcome(self, connection: Any) -> None:
        try:
            hello = m.welcome(connection, self.address.secret)
        except Exception as error:  # a stranger may say anything
            log.warning("a stranger called the engine pool and was sent away: %s", error)
            connection.close()
            return
        with self._changed:
            engine = self.engines[hello.engine]
            name = f"{'supervisor' if hello.is_supervisor else 'engine'} {hello.engine}"
            if hello.note:
                log.warning("fastgrpo: %s: %s", name, hello.note)
            if hello.is_supervisor:
                self.supervisors[hello.engine] = Line(
                    connection, lambda _, said: self._hear_supervisor(engine, said), name
                )
            else:
                if engine.line is not None:
                    self._lose(engine, "another process came in its place", restart=False)
                engine.process, engine.num_workers = hello.process, hello.num_workers
                engine.heard, engine.version = time.monotonic(), None
                engine.inbox.clear()
                engine.line = Line(connection, lambda line, said: self._hear(engine, line, said), name)
            self._changed.notify_all()

    def _hear(self, engine: Engine, line: Line, message: Any) -> None:
        with self._changed:
            if engine.line is line:
                self._take_in(engine, message)
                self._changed.notify_all()

    def _hear_supervisor(self, engine: Engine, message: Any) -> None:
        """A process that called here is known to be lost from its own line."""
        with self._changed:
            if isinstance(message, m.Exited) and message.process != engine.process:
                self._lose(engine, f"{message.process} ended before it was ready: {message.reason}")
            elif message is None and not self._closing:
                self._fail(f"the supervisor of engine {engine.index} is gone")

    def _watch(self) -> None:
        while not self._closing:
            time.sleep(TICK_S)
            with self._changed:
                self._look_after()

    def _take_in(self, engine: Engine, message: Any) -> None:
        engine.heard = time.monotonic()
        match message:
            case None:
                self._lose(engine, "its process ended")
            case m.Alive(busy_s=busy_s):
                engine.busy_s += busy_s
            case m.Finished(responses=responses):
                for i, response in responses:
                    engine.pending.pop(i, None)
                    if i in self._known and i not in self.finished:
                        self.finished[i] = response
                    elif self.pinned:  # otherwise nothing is drawn twice, and this one was cancelled
                        self.num_redrawn += 1
                self._deal()
            case m.Received():
                engine.inbox.append(message)
            case m.Failed(error=error):
                self._lose(engine, error)
            case _:
                self._lose(engine, f"it said {type(message).__name__}")

    def _look_after(self) -> None:
        """Who has been silent for too long, and who does not come."""
        now = time.monotonic()
        for engine in self.engines:
            if engine.line is not None and not engine.is_syncing and now - engine.heard > self.deadlines.stall_s:
                self._lose(engine, f"it said nothing for {now - engine.heard:.0f} s (--deadline.stall_s)")
            elif engine.line is None and now - engine.lost_since > self.deadlines.start_s:
                self._fail(
                    f"engine {engine.index} was not ready after {now - engine.lost_since:.0f} s (--deadline.start_s "
                    f"{self.deadlines.start_s:g})"
                )

    def _lose(self, engine: Engine, why: str, *, restart: bool = True) -> None:
        if engine.line is not None:
            engine.line.hang_up()
        line = f"engine {engine.index} ({engine.process}) was lost: {why}"
        if not self._closing:
            log.warning("fastgrpo: %s", line)
            self.lost.append(line)
            self.num_restarts += 1
        engine.line, engine.version, engine.lost_since = None, None, time.monotonic()
        engine.is_syncing = False
        if self._closing:
            return
        if not self.pinned:
            self.waiting.extendleft(reversed(_groups(engine.pending.values())))
            engine.pending.clear()
            self._deal()
        if self.num_restarts > self.max_restarts:
            self._fail(f"{line}. {self.num_restarts} losses are more than --rollout.max_engine_restarts allows")
        elif restart and (supervisor := self.supervisors.get(engine.index)) is not None:
            supervisor.say(m.Restart())
        self._changed.notify_all()

    def _fail(self, reason: str) -> None:
        self._failure = self._failure or EngineFailure(reason)
        self._changed.notify_all()

    def _deal(self) -> None:
        """Waiting groups to the engines with the fewest requests, as long as they have free places."""
        ready = [e for e in self.engines if e.version is not None]
        given: dict[int, list[Request]] = {}
        while self.waiting and ready:
            engine = min(ready, key=lambda e: (len(e.pending), e.index))
            if engine.pending and len(engine.pending) + len(self.waiting[0]) > self.max_sequences:
                break
            group = self.waiting.popleft()
            engine.pending.update({r.id: r for r in group})
            given.setdefault(engine.index, []).extend(group)
        for index, requests in given.items():
            self._send(self.engines[index], m.Submit(requests))

    def _send(self, engine: Engine, message: Any) -> None:
        if engine.line is not None:
            engine.line.say(message)


def _shares(groups: Sequence[Sequence[Request]], count: int) -> list[Sequence[Sequence[Request]]]:
    return [groups[len(groups) * i // count : len(groups) * (i + 1) // count] for i in range(count)]


def _groups(requests: Iterable[Request]) -> list[list[Request]]:
    """Requests of one prompt together again."""
    by_prompt: dict[int, list[Request]] = {}
    for request in requests:
        by_prompt.setdefault(request.prompt.position, []).append(request)
    return list(by_prompt.values())
