"""The way to one server: what the pool asks of it goes out, and what comes of it is told to the pool."""

import asyncio
import json
import logging
import time
import uuid
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import aiohttp

from fastgrpo.rollout.compare_weights import added
from fastgrpo.rollout.servers.client import INITIAL, Client, OtherWeights, ServerError, in_words, label_of, version_of
from fastgrpo.rollout.servers.home import FAILURES, HomeFailure, Homes
from fastgrpo.rollout.servers.pool import Received, Server, ServerPool
from fastgrpo.rollout.weight_sync import Manifest, find_store
from fastgrpo.rollout.weight_sync.broadcast import checksums_key, manifest_as_json
from fastgrpo.types import Request

ALIVE_S = 1.0
"""A server is asked for a sign of life so long after the last."""
WRONG_REQUEST = (400, 404, 413, 422)
"""Of HTTP: what is wrong is in the request, and another server would say the same."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where the sender of weights waits; the server's processes take the ranks from ``first_rank`` on."""

    host: str
    port: int
    first_rank: int
    size: int
    timeout_s: float
    manifest: Manifest

    def to_json(self) -> dict[str, Any]:
        return {
            "host": self.host,
            "port": self.port,
            "first_rank": self.first_rank,
            "size": self.size,
            "timeout_s": self.timeout_s,
            "manifest": manifest_as_json(self.manifest),
        }


class HttpChannel:
    """A channel (`fastgrpo.rollout.servers.pool`) whose methods are for any thread, and whose work is on an event loop.

    ``keep_cache``: keys and values of what is being drawn stay when weights change. ``homes``: the ranks that have the
    tokens of their groups drawn; without it, this one draws all. ``run``: whose weights the server holds, `INITIAL` for
    those of its start, which nobody may write; without it, a run of this channel's own writes them.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        client: Client,
        pool: ServerPool,
        server: Server,
        keep_cache: bool,
        homes: Homes | None = None,
        run: str = "",
    ) -> None:
        self._loop, self._client, self._pool, self._server = loop, client, pool, server
        self._keep_cache, self._homes = keep_cache, homes or Homes([], "")
        self._salt, self._num_syncs, self._version = uuid.uuid4().hex, 0, 0
        self._run = run or self._salt
        self._meeting: Meeting | None = None
        self._not_joined = "no sender of weights was named"
        self._drawing: dict[int, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._control: asyncio.Queue[Callable[[], Coroutine[Any, Any, None]]] = asyncio.Queue()
        self._closed = False
        self._busy_since: float | None = None
        self._busy_s = 0.0
        loop.call_soon_threadsafe(self._begin)

    def draw(self, requests: Sequence[Request]) -> None:
        self._loop.call_soon_threadsafe(self._draw_all, requests)

    def cancel(self, ids: Sequence[int]) -> None:
        self._loop.call_soon_threadsafe(self._cancel, ids)

    def join(self, meeting: Meeting) -> None:
        self._loop.call_soon_threadsafe(self._control.put_nowait, partial(self._join, meeting))

    def receive(self, number: int, version: int, *, with_checksums: bool) -> None:
        work = partial(self._receive, number, version, with_checksums)
        self._loop.call_soon_threadsafe(self._control.put_nowait, work)

    def close(self) -> None:
        """Stops working; what is being drawn is aborted by the server, as its connections end."""
        self._loop.call_soon_threadsafe(self._stop)

    # On the loop.

    def _begin(self) -> None:
        self._spawn(self._keep_watch())
        self._spawn(self._control_in_order())

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("fastgrpo: server %s", self._server.url, exc_info=error)
            self._pool.lose(self._server, self, f"it could not be spoken to: {error!r}")

    def _stop(self) -> None:
        if self._closed:
            return
        self._closed = True
        for task in self._tasks:
            task.cancel()
        self._closing = self._loop.create_task(self._client.close())  # held, for the loop does not

    def _draw_all(self, requests: Sequence[Request]) -> None:
        if not self._closed:
            for request in requests:
                self._drawing[request.id] = self._spawn(self._draw(request))
            self._note_busy()

    def _cancel(self, ids: Sequence[int]) -> None:
        for i in ids:
            if (task := self._drawing.pop(i, None)) is not None:
                task.cancel()
        self._note_busy()

    async def _draw(self, request: Request) -> None:
        try:
            salt = f"{self._salt}-{self._num_syncs}"
            response = await self._homes.draw(self._client, request, salt, self._run, self._version)
        except HomeFailure as failure:
            self._pool.fail(str(failure))
            return
        except FAILURES as error:
            if isinstance(error, ServerError) and error.status in WRONG_REQUEST:  # as it would be elsewhere
                self._pool.fail(f"server {self._server.url} refuses a request: {error}")
            self._fail_if_written(error)
            self._pool.lose(self._server, self, f"a request failed: {in_words(error)}")
            return
        if self._drawing.pop(request.id, None) is not None:
            self._note_busy()
            self._pool.on_response(self._server, self, request, response)

    async def _keep_watch(self) -> None:
        """Asks the engine for a sign of life, again and again."""
        while True:
            try:
                # When it is asked: a first sync may end before it has answered.
                had_ours = self._num_syncs > 0 or self._run == INITIAL
                label = await self._client.alive()
                if had_ours and label:
                    version_of(label, self._run)
            except (*FAILURES, ValueError) as error:
                self._fail_if_written(error)
                self._pool.lose(self._server, self, in_words(error))
                return
            self._pool.on_alive(self._server, self, self._take_busy_s())
            await asyncio.sleep(ALIVE_S)

    def _fail_if_written(self, error: Exception) -> None:
        if isinstance(error, OtherWeights):
            self._pool.fail(f"server {self._server.url}: {in_words(error)}")

    async def _control_in_order(self) -> None:
        while True:
            work = await self._control.get()
            await work()

    async def _join(self, meeting: Meeting) -> None:
        self._meeting = meeting
        try:
            await self._client.join(meeting.to_json())
            self._not_joined = ""
        except FAILURES as error:
            self._fail_in_sync(error)

    async def _receive(self, number: int, version: int, with_checksums: bool) -> None:
        checksums = None
        try:
            if not self._not_joined:
                label = label_of(self._run, version)
                await self._client.receive(number, label, with_checksums, self._keep_cache)
                checksums = await asyncio.to_thread(self._checksums, number) if with_checksums else None
                self._num_syncs, self._version = self._num_syncs + 1, version
        except (*FAILURES, RuntimeError) as error:  # torch's errors about a store are RuntimeErrors
            self._fail_in_sync(error)
        self._pool.on_received(self._server, self, Received(number, version, self._not_joined, checksums))

    def _fail_in_sync(self, error: Exception) -> None:
        """A server that says why it could not take part is there; one that hangs up is not."""
        self._not_joined = in_words(error)
        if isinstance(error, aiohttp.ClientError):
            self._pool.lose(self._server, self, self._not_joined)

    def _checksums(self, number: int) -> dict[str, int]:
        """What the server's processes left where they met the sender: the checksums of whole tensors."""
        meeting = self._meeting
        assert meeting is not None
        store = find_store(meeting.host, meeting.port, meeting.size, meeting.timeout_s)
        ranks = range(meeting.first_rank, meeting.first_rank + self._server.num_workers)
        return added(json.loads(store.get(checksums_key(number, rank))) for rank in ranks)

    def _note_busy(self) -> None:
        now = time.monotonic()
        if self._busy_since is not None:
            self._busy_s += now - self._busy_since
        self._busy_since = now if self._drawing else None

    def _take_busy_s(self) -> float:
        self._note_busy()
        taken, self._busy_s = self._busy_s, 0.0
        return taken
