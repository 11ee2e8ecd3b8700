"""The engine processes, as the first trainer rank sees them: which are there, what each draws, which were lost."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from typing import Any

from fastgrpo.config import DeadlineConfig
from fastgrpo.rollout.generate import OnFinished
from fastgrpo.rollout.remote import messages as m
from fastgrpo.rollout.remote.address import Address, new_secret
from fastgrpo.rollout.remote.channel import Channel
from fastgrpo.rollout.remote.door import Door
from fastgrpo.rollout.servers.channel import ServerChannel
from fastgrpo.rollout.servers.servers import MakeChannel, Servers
from fastgrpo.types import Request, Response

log = logging.getLogger(__name__)

WATCH_S = 0.1
CLOSE_S = 2.0  # for the last messages to be sent: they are lost if the process ends first


AnyChannel = Channel | ServerChannel
Asked = tuple[Request, OnFinished | None]


class EngineFailure(RuntimeError):
    """Engines were lost more often than the run allows, or were not ready in time; the message says which and why."""


@dataclass
class Engine:
    """An engine: its process may be replaced by another."""

    index: int
    channel: AnyChannel | None = None  # None while there is no process
    process: str = ""
    num_workers: int = 1
    last_heard: float = 0.0  # time.monotonic of its last message
    lost_since: float = 0.0
    version: int | None = None  # of the weights that it holds; None: it does not have this run's weights yet
    pending: dict[int, Request] = field(default_factory=dict)  # that it draws, or will draw when it is back
    share: list[Request] = field(default_factory=list)  # if requests are pinned: all that it was given together
    inbox: "deque[m.Received]" = field(default_factory=deque)
    busy_s: float = 0.0
    is_syncing: bool = False


class EnginePool:
    """Gives requests to the engines, and notices within seconds when one dies.

    ``pinned``: a request stays with the engine it was given to, which draws all of its share again after a restart:
    so failures do not change what is drawn. Otherwise requests wait here and go, one group at a time, to the engine
    that has the fewest.

    ``check`` and every wait raise EngineFailure after engines were lost more than ``max_restarts`` times.
    """

    def __init__(
        self,
        host: str,
        num_engines: int,
        deadlines: DeadlineConfig,
        max_restarts: int,
        max_sequences: int,
        pinned: bool,
        servers: Servers | None = None,
    ) -> None:
        self.host, self.servers = host, servers
        self.deadlines, self.max_restarts, self.max_sequences = deadlines, max_restarts, max_sequences
        self.pinned = pinned
        now = time.monotonic()
        self.engines = [Engine(i, lost_since=now) for i in range(num_engines)]
        self.supervisors: dict[int, Channel] = {}
        self.num_restarts = 0
        self.lost: list[str] = []  # one sentence for each loss
        self.waiting: deque[list[Request]] = deque()  # groups that no engine has yet
        self.finished: dict[int, Response] = {}  # by request id, until they are collected
        self.num_redrawn = 0  # responses that came twice
        self._failure: Exception | None = None
        self._changed = threading.Condition()
        self._closing = False
        self._door: Door | None = None
        self._known: dict[int, Asked] = {}  # requests that are not collected yet
        if servers is None:
            listener, port = m.listen(host)
            self.address = Address(host, port, new_secret())
            self._door = Door(self.address, listener, num_engines)
            self._door.open(self._admit)
        else:
            servers.open(self)
        threading.Thread(target=self._watch, name="engine pool: watch", daemon=True).start()

    def submit(
        self, groups: Sequence[Sequence[Request]], *, first: bool = False, on_finished: OnFinished | None = None
    ) -> None:
        """Takes groups of requests, whose ids must be new. ``first``: they go before those that wait.

        ``on_finished`` is called at once, on a thread of the pool and under its lock, with a response that has come
        and that nobody has cancelled.
        """
        with self._changed:
            self._known.update({r.id: (r, on_finished) for group in groups for r in group})
            if self.pinned:
                share = _shares(groups, len(self.engines))
                for engine, part in zip(self.engines, share, strict=True):
                    requests = [r for group in part for r in group]
                    engine.share = [*engine.share, *requests] if engine.pending else requests
                    engine.pending.update({r.id: r for r in requests})
                    if requests and engine.version is not None:
                        self._send(engine, _submission(requests))
            elif first:
                self.waiting.extendleft(list(group) for group in reversed(groups))
                self._assign_waiting()
            else:
                self.waiting.extend(list(group) for group in groups)
                self._assign_waiting()

    def cancel(self, ids: Iterable[int]) -> None:
        """Removes requests, whether they wait, are being drawn or have finished."""
        ids = set(ids)
        with self._changed:
            for i in ids:
                self._known.pop(i, None)
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
        """The responses that have finished since the last call, by request id."""
        with self._changed:
            self.check()
            done, self.finished = self.finished, {}
            for i in done:
                self._known.pop(i, None)
            return done

    def wait(self, is_over: Callable[[], bool], timeout_s: float) -> bool:
        """Waits until ``is_over`` is true or the time is up, and returns which. Raises EngineFailure."""
        with self._changed:
            self.check()
            over = self._changed.wait_for(lambda: self._failure is not None or is_over(), timeout_s)
            self.check()
            return over

    def check(self) -> None:
        """Raises EngineFailure if the pool has failed."""
        if self._failure is not None:
            raise self._failure

    @property
    def num_drawing(self) -> int:
        """Number of requests at the engines that have this run's weights."""
        with self._changed:
            return sum(len(e.pending) for e in self.engines if e.version is not None)

    @property
    def present(self) -> list[Engine]:
        """Engines that have a process."""
        with self._changed:
            return [e for e in self.engines if e.channel is not None]

    @property
    def unsynced(self) -> list[Engine]:
        """Engines that have a process and wait for weights."""
        return [e for e in self.present if e.version is None]

    def send(self, engine: Engine, message: m.ToEngine) -> None:
        """Sends a message to the engine's process, if there is one."""
        with self._changed:
            self._send(engine, message)

    def synced(self, engine: Engine, version: int) -> None:
        """Notes that the engine holds these weights, and gives it requests. Does nothing if it was lost since."""
        with self._changed:
            if engine.channel is None:
                return
            first, engine.version = engine.version is None, version
            if first and engine.pending:  # pinned: its share is drawn again, all together as before
                self._send(engine, _submission(engine.share))
            self._assign_waiting()

    def lose(self, engine: Engine, channel: AnyChannel, why: str) -> None:
        """Gives up the process behind this channel and has another started, unless it is lost already."""
        with self._changed:
            if engine.channel is channel:
                self._lose(engine, why)

    def set_syncing(self, engine: Engine, is_syncing: bool) -> None:
        """Notes that a sync of the engine begins or ends; until its end the sync's own deadline counts."""
        with self._changed:
            engine.is_syncing, engine.last_heard = is_syncing, time.monotonic()

    def take_busy_s(self) -> float:
        """Seconds of drawing since the last call, as the mean over the engines."""
        with self._changed:
            total = sum(e.busy_s for e in self.engines)
            for engine in self.engines:
                engine.busy_s = 0.0
            return total / len(self.engines)

    def close(self) -> None:
        """Tells every engine and supervisor to end, and waits a moment until the messages are sent."""
        with self._changed:
            self._closing = True
            channels: list[AnyChannel] = [e.channel for e in self.engines if e.channel is not None]
            channels += self.supervisors.values()
        for channel in channels:
            channel.send(m.End())
            channel.send(None)
        until = time.monotonic() + CLOSE_S
        for channel in channels:
            channel.wait_until_sent(max(0.0, until - time.monotonic()))
        if self._door is not None:
            self._door.close()
        if self.servers is not None:
            self.servers.close()

    def admit_server(self, index: int, process: str, num_workers: int, make: MakeChannel) -> None:
        """Takes a server in that is ready; ``make`` makes its channel."""
        with self._changed:
            if not self._closing:
                engine = self.engines[index]
                self._take_in(engine, process, num_workers)
                engine.channel = make(lambda channel, message: self._on_message(engine, channel, message))
                self._changed.notify_all()

    def fail(self, reason: str) -> None:
        """Makes every wait, from now on, raise EngineFailure."""
        with self._changed:
            self._fail(reason)

    # The methods below run on the pool's own threads, or under its lock.

    def _admit(self, connection: Connection, hello: m.Hello) -> None:
        with self._changed:
            engine = self.engines[hello.engine]
            name = f"{'supervisor' if hello.is_supervisor else 'engine'} {hello.engine}"
            if hello.note:
                log.warning("fastgrpo: %s: %s", name, hello.note)
            if hello.is_supervisor:
                self.supervisors[hello.engine] = Channel(
                    connection, lambda _, message: self._on_supervisor_message(engine, message), name
                )
            else:
                if engine.channel is not None:
                    self._lose(engine, "another process took its place", restart=False)
                self._take_in(engine, hello.process, hello.num_workers)
                engine.channel = Channel(
                    connection, lambda channel, message: self._on_message(engine, channel, message), name
                )
            self._changed.notify_all()

    def _take_in(self, engine: Engine, process: str, num_workers: int) -> None:
        engine.process, engine.num_workers = process, num_workers
        engine.last_heard, engine.version = time.monotonic(), None
        engine.inbox.clear()

    def _on_message(self, engine: Engine, channel: AnyChannel, message: Any) -> None:
        with self._changed:
            if engine.channel is channel:  # not from a process that was replaced
                self._handle(engine, message)
                self._changed.notify_all()

    def _on_supervisor_message(self, engine: Engine, message: Any) -> None:
        with self._changed:
            # The end of a process that had connected is known from its own channel.
            if isinstance(message, m.Exited) and message.process != engine.process:
                self._lose(engine, f"{message.process} ended before it was ready: {message.reason}")
            elif message is None and not self._closing:
                self._fail(f"the supervisor of engine {engine.index} is gone")

    def _watch(self) -> None:
        while not self._closing:
            time.sleep(WATCH_S)
            if self._door is not None:
                self._door.send_away_the_silent()
            with self._changed:
                self._check_deadlines()

    def _handle(self, engine: Engine, message: Any) -> None:
        engine.last_heard = time.monotonic()
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
                        request, on_finished = self._known[i]
                        if on_finished is not None:
                            on_finished(request, response)
                    elif self.pinned:  # if not pinned, nothing is drawn twice: this response was cancelled
                        self.num_redrawn += 1
                self._assign_waiting()
            case m.Received():
                engine.inbox.append(message)
            case m.Failed(error=error):
                self._lose(engine, error)
            case _:
                self._lose(engine, f"it sent {type(message).__name__}")

    def _check_deadlines(self) -> None:
        """Loses engines that were silent for too long, and fails if one is not ready in time."""
        now = time.monotonic()
        for engine in self.engines:
            silent_s = now - engine.last_heard
            if engine.channel is not None and not engine.is_syncing and silent_s > self.deadlines.stall_s:
                self._lose(engine, f"it said nothing for {silent_s:.0f} s (--deadline.stall_s)")
            elif engine.channel is None and now - engine.lost_since > self.deadlines.start_s:
                self._fail(
                    f"engine {engine.index} was not ready after {now - engine.lost_since:.0f} s (--deadline.start_s "
                    f"{self.deadlines.start_s:g})"
                )

    def _lose(self, engine: Engine, why: str, *, restart: bool = True) -> None:
        if engine.channel is not None:
            engine.channel.close()
        message = f"engine {engine.index} ({engine.process}) was lost: {why}"
        if not self._closing:
            log.warning("fastgrpo: %s", message)
            self.lost.append(message)
            self.num_restarts += 1
        engine.channel, engine.version, engine.lost_since = None, None, time.monotonic()
        engine.is_syncing = False
        if self._closing:
            return
        if not self.pinned:
            self.waiting.extendleft(reversed(_groups(engine.pending.values())))
            engine.pending.clear()
            self._assign_waiting()
        if self.num_restarts > self.max_restarts:
            self._fail(f"{message}. {self.num_restarts} losses are more than --rollout.max_engine_restarts allows")
        elif self.servers is not None:
            self.servers.look_for(engine.index)
        elif restart and (supervisor := self.supervisors.get(engine.index)) is not None:
            supervisor.send(m.Restart())
        self._changed.notify_all()

    def _fail(self, reason: str) -> None:
        self._failure = self._failure or EngineFailure(reason)
        self._changed.notify_all()

    def _assign_waiting(self) -> None:
        """Gives waiting groups to the engines with the fewest requests, as long as these have free places."""
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
            self._send(self.engines[index], _submission(requests))

    def _send(self, engine: Engine, message: m.ToEngine) -> None:
        if engine.channel is not None:
            engine.channel.send(message)


def _submission(requests: Sequence[Request]) -> m.Submit:
    """The message to an engine, which does not judge and needs no row."""
    return m.Submit([replace(r, prompt=r.prompt.without_columns()) for r in requests])


def _shares(groups: Sequence[Sequence[Request]], count: int) -> list[Sequence[Sequence[Request]]]:
    return [groups[len(groups) * i // count : len(groups) * (i + 1) // count] for i in range(count)]


def _groups(requests: Iterable[Request]) -> list[list[Request]]:
    """The requests in groups, one for each prompt."""
    by_prompt: dict[int, list[Request]] = {}
    for request in requests:
        by_prompt.setdefault(request.prompt.position, []).append(request)
    return list(by_prompt.values())
