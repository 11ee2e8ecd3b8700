"""The servers as the first trainer rank sees them: which are there, what each draws, which were lost."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from fastgrpo.config import DeadlineConfig
from fastgrpo.rollout.generate import OnFinished
from fastgrpo.types import Request, Response, ResponseElsewhere

log = logging.getLogger(__name__)

WATCH_S = 0.1

Asked = tuple[Request, OnFinished | None]


@dataclass(frozen=True)
class Flags:
    """What a command calls the settings that messages tell of."""

    servers: str = "--rollout.servers"
    key_file: str = "--rollout.server_key_file"
    start_s: str = "--deadline.start_s"
    stall_s: str = "--deadline.stall_s"


OF_TRAIN = Flags()


class ServerFailure(RuntimeError):
    """No server was there in time, one will never do (``is_refusal``), or they were lost too often; the message says
    which and why."""

    def __init__(self, message: str, is_refusal: bool = False) -> None:
        super().__init__(message)
        self.is_refusal = is_refusal


class Channel(Protocol):
    """The way to a server's process. Its methods return at once; what comes of them is told to the pool."""

    def draw(self, requests: Sequence[Request]) -> None: ...

    def cancel(self, ids: Sequence[int]) -> None: ...

    def join(self, meeting: Any) -> None: ...

    def receive(self, number: int, version: int, *, with_checksums: bool) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Received:
    """A server has taken part in a sync, or why it has not."""

    number: int  # of the attempt
    policy_version: int
    error: str = ""
    checksums: dict[str, int] | None = None


@dataclass(eq=False)
class Server:
    """A server; its process may be replaced by another at the same address."""

    url: str
    channel: Channel | None = None  # None while it is not there
    num_workers: int = 1  # processes that hold its weights
    max_sequences: int = 1
    last_heard: float = 0.0  # time.monotonic of its last sign
    version: int | None = None  # of the weights that it holds; None: it does not have this run's weights yet
    pending: dict[int, Request] = field(default_factory=dict)  # that it draws
    received: "deque[Received]" = field(default_factory=deque)
    busy_s: float = 0.0
    is_syncing: bool = False

    @property
    def load(self) -> int:
        """Tokens that it may still have to read and draw."""
        return sum(len(r.prompt.prompt_ids) + r.sampling.max_response_tokens for r in self.pending.values())


class ServerPool:
    """Gives requests to the servers, a group at a time, and notices within seconds when one is lost.

    A group goes to the server with the fewest tokens before it, so that its prompt is read once; the others wait here
    until a server has room. What a lost server had is drawn elsewhere, by the same seeds, and counts once.

    ``check`` and every wait raise ServerFailure when no server was there for ``deadlines.start_s``, and when more than
    ``max_losses`` were lost (None: any number may be).
    """

    def __init__(
        self, deadlines: DeadlineConfig, max_sequences: int, max_losses: int | None, flags: Flags = OF_TRAIN
    ) -> None:
        self.deadlines, self.max_sequences, self.max_losses, self.flags = deadlines, max_sequences, max_losses, flags
        self.servers: list[Server] = []
        self.on_lost: Callable[[Server], None] = lambda server: None  # under the lock; looks for it again
        self.num_lost = 0
        self.has_begun = False  # whether a server ever had this run's weights
        self.waiting: deque[list[Request]] = deque()  # groups that no server has yet
        self.finished: dict[int, Response | ResponseElsewhere] = {}  # by request id, until they are collected
        self.num_redrawn = 0  # responses that came twice
        self._known: dict[int, Asked] = {}  # requests that are not collected yet
        self._nobody_since: float | None = time.monotonic()
        self._failure: Exception | None = None
        self._changed = threading.Condition(threading.RLock())
        self._closing = False
        threading.Thread(target=self._watch, name="server pool: watch", daemon=True).start()

    def submit(
        self, groups: Sequence[Sequence[Request]], *, first: bool = False, on_finished: OnFinished | None = None
    ) -> None:
        """Takes groups of requests, whose ids must be new. ``first``: they go before those that wait.

        ``on_finished`` is called at once, on a thread of the pool and under its lock, with a response that has come
        here with its tokens and that nobody has cancelled.
        """
        with self._changed:
            self._known.update({r.id: (r, on_finished) for group in groups for r in group})
            if first:
                self.waiting.extendleft(list(group) for group in reversed(groups))
            else:
                self.waiting.extend(list(group) for group in groups)
            self._assign_waiting()

    def cancel(self, ids: Iterable[int]) -> None:
        """Removes requests, whether they wait, are being drawn or have finished."""
        ids = set(ids)
        with self._changed:
            for i in ids:
                self._known.pop(i, None)
                self.finished.pop(i, None)
            self.waiting = deque(g for g in self.waiting if not ids.intersection(r.id for r in g))
            for server in self.servers:
                mine = [i for i in server.pending if i in ids]
                for i in mine:
                    del server.pending[i]
                if mine and server.channel is not None:
                    server.channel.cancel(mine)
            self._assign_waiting()

    def collect(self) -> dict[int, Response | ResponseElsewhere]:
        """The responses that have finished since the last call, by request id. Raises ServerFailure."""
        with self._changed:
            self.check()
            return self.take_finished()

    def take_finished(self) -> dict[int, Response | ResponseElsewhere]:
        """As `collect`, also of a pool that has failed."""
        with self._changed:
            done, self.finished = self.finished, {}
            for i in done:
                self._known.pop(i, None)
            return done

    def wait(self, is_over: Callable[[], bool], timeout_s: float) -> bool:
        """Waits until ``is_over`` is true or the time is up, and returns which. Raises ServerFailure."""
        with self._changed:
            self.check()
            over = self._changed.wait_for(lambda: self._failure is not None or is_over(), timeout_s)
            self.check()
            return over

    def check(self) -> None:
        """Raises ServerFailure if the pool has failed."""
        if self._failure is not None:
            raise self._failure

    @property
    def num_drawing(self) -> int:
        """Number of requests at the servers."""
        with self._changed:
            return sum(len(s.pending) for s in self.servers)

    @property
    def present(self) -> list[Server]:
        """Servers that are there."""
        with self._changed:
            return [s for s in self.servers if s.channel is not None]

    @property
    def unsynced(self) -> list[Server]:
        """Servers that are there and wait for weights."""
        return [s for s in self.present if s.version is None]

    def synced(self, server: Server, channel: Channel, version: int) -> None:
        """Notes that the server holds these weights, and gives it requests. Does nothing if it was lost since."""
        with self._changed:
            if server.channel is channel:
                server.version, self.has_begun = version, True
                self._assign_waiting()

    def lose(self, server: Server, channel: Channel, why: str) -> None:
        """Gives up the process behind this channel, unless it is lost already."""
        with self._changed:
            if server.channel is channel:
                self._lose(server, why)

    def set_syncing(self, server: Server, is_syncing: bool) -> None:
        """Notes that a sync of the server begins or ends; until its end the sync's own deadline counts."""
        with self._changed:
            server.is_syncing, server.last_heard = is_syncing, time.monotonic()

    def take_busy_s(self) -> float:
        """Seconds of drawing since the last call, as the mean over the servers."""
        with self._changed:
            total = sum(s.busy_s for s in self.servers)
            for server in self.servers:
                server.busy_s = 0.0
            return total / max(len(self.servers), 1)

    def close(self) -> None:
        """Ends all connections. Servers abort what they draw, and go on for the next run."""
        with self._changed:
            self._closing = True
            for server in self.servers:
                if server.channel is not None:
                    server.channel.close()

    # What the threads that speak to the servers tell.

    def add(self, url: str) -> Server:
        """A server that is looked for."""
        with self._changed:
            self.servers.append(Server(url))
            return self.servers[-1]

    def remove(self, server: Server) -> None:
        """Forgets a server that shall not be looked for any more; what it draws is drawn elsewhere."""
        with self._changed:
            self.servers.remove(server)
            self._take_away(server)
            self._changed.notify_all()

    def admit(self, server: Server, make: Callable[[], Channel], num_workers: int, max_sequences: int) -> None:
        """Takes a server in that is ready; ``make`` makes its channel."""
        with self._changed:
            if self._closing or server not in self.servers:
                return
            server.num_workers, server.max_sequences = num_workers, min(max_sequences, self.max_sequences)
            server.last_heard, server.version = time.monotonic(), None
            server.received.clear()
            server.channel, self._nobody_since = make(), None
            self._changed.notify_all()

    def fail(self, reason: str, is_refusal: bool = False) -> None:
        """Makes every wait, from now on, raise ServerFailure."""
        with self._changed:
            self._failure = self._failure or ServerFailure(reason, is_refusal)
            self._changed.notify_all()

    def on_alive(self, server: Server, channel: Channel, busy_s: float) -> None:
        """A sign of life, with the seconds since the last one in which the server had something to draw."""
        with self._changed:
            if self._is_of(server, channel):
                server.busy_s += busy_s

    def on_response(
        self, server: Server, channel: Channel, request: Request, response: Response | ResponseElsewhere
    ) -> None:
        with self._changed:
            if not self._is_of(server, channel):
                return
            server.pending.pop(request.id, None)
            if request.id in self._known and request.id not in self.finished:
                self.finished[request.id] = response
                _, on_finished = self._known[request.id]
                if on_finished is not None and isinstance(response, Response):
                    on_finished(request, response)
            else:
                self.num_redrawn += 1
            self._assign_waiting()
            self._changed.notify_all()

    def on_received(self, server: Server, channel: Channel, received: Received) -> None:
        with self._changed:
            if self._is_of(server, channel):
                server.received.append(received)
                self._changed.notify_all()

    # Under the lock.

    def _is_of(self, server: Server, channel: Channel) -> bool:
        """Whether the channel is the server's, and not that of a process before; if so, it is a sign of life."""
        if server.channel is channel:
            server.last_heard = time.monotonic()
        return server.channel is channel

    def _watch(self) -> None:
        while not self._closing:
            time.sleep(WATCH_S)
            with self._changed:
                self._check_deadlines(time.monotonic())

    def _check_deadlines(self, now: float) -> None:
        for server in self.servers:
            silent_s = now - server.last_heard
            if server.channel is not None and not server.is_syncing and silent_s > self.deadlines.stall_s:
                self._lose(server, f"it said nothing for {silent_s:.0f} s ({self.flags.stall_s})")
        if self._nobody_since is not None and now - self._nobody_since > self.deadlines.start_s:
            waited = f"for {now - self._nobody_since:.0f} s ({self.flags.start_s} {self.deadlines.start_s:g})"
            self.fail(f"no server was there {waited}: {', '.join(s.url for s in self.servers) or 'none is named'}")

    def _lose(self, server: Server, why: str) -> None:
        self._take_away(server)
        if self._closing:
            return
        message = f"server {server.url} was lost: {why}"
        log.warning("fastgrpo: %s", message)
        self.num_lost += 1
        if self.max_losses is not None and self.num_lost > self.max_losses:
            self.fail(f"{message}. {self.num_lost} losses are more than --rollout.max_engine_restarts allows")
        else:
            self.on_lost(server)
        self._changed.notify_all()

    def _take_away(self, server: Server) -> None:
        """Ends the connection to a server, and takes back what it has not finished."""
        if server.channel is not None:
            server.channel.close()
        server.channel, server.version = None, None
        server.is_syncing = False
        self.waiting.extendleft(reversed(groups_of(server.pending.values())))
        server.pending.clear()
        if not any(s.channel is not None for s in self.servers):
            self._nobody_since = time.monotonic()
        self._assign_waiting()

    def _assign_waiting(self) -> None:
        """Gives waiting groups to the servers with the least to do, as long as these have free places."""
        if not self.waiting:
            return
        ready = [s for s in self.servers if s.version is not None]
        loads = {s: s.load for s in ready}
        given: dict[Server, list[Request]] = {}
        while self.waiting and ready:
            group = self.waiting[0]
            server = min(ready, key=lambda s: loads[s])
            if server.pending and len(server.pending) + len(group) > server.max_sequences:
                ready.remove(server)
                continue
            self.waiting.popleft()
            server.pending.update({r.id: r for r in group})
            loads[server] += sum(len(r.prompt.prompt_ids) + r.sampling.max_response_tokens for r in group)
            given.setdefault(server, []).extend(group)
        for server, requests in given.items():
            assert server.channel is not None
            server.channel.draw(requests)


def groups_of(requests: Iterable[Request]) -> list[list[Request]]:
    """The requests in groups, one for each prompt."""
    by_prompt: dict[int, list[Request]] = {}
    for request in requests:
        by_prompt.setdefault(request.prompt.position, []).append(request)
    return list(by_prompt.values())
