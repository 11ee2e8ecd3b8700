"""A server as the pool sees an engine: messages go out, and what came of them comes back."""

import asyncio
import json
import time
import uuid
from collections.abc import Callable, Coroutine
from typing import Any

import aiohttp

from fastgrpo.rollout.compare_weights import added
from fastgrpo.rollout.remote import messages as m
from fastgrpo.rollout.servers.client import Client, ServerError
from fastgrpo.rollout.weight_sync import find_store
from fastgrpo.rollout.weight_sync.broadcast import checksums_key, manifest_as_json
from fastgrpo.types import Request

OnMessage = Callable[["ServerChannel", Any], None]


class ServerChannel:
    """Takes the messages of the pool on any thread, and works on an event loop.

    ``on_message`` gets every answer on the loop's thread, and a Failed once, when the server is lost.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, client: Client, num_workers: int, keep_cache: bool, on_message: OnMessage
    ) -> None:
        self._loop, self._client, self._num_workers, self._keep_cache = loop, client, num_workers, keep_cache
        self._on_message = on_message
        self._salt, self._num_syncs, self._version = uuid.uuid4().hex, 0, 0
        self._joined: m.Join | None = None
        self._not_joined = "no sender of weights was named"
        self._drawing: dict[int, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._control: asyncio.Queue[m.Join | m.Receive] = asyncio.Queue()
        self._closed = False
        self._busy_since: float | None = None
        self._busy_s = 0.0
        loop.call_soon_threadsafe(self._begin)

    def send(self, message: Any) -> None:
        """Queues a message and returns at once."""
        self._loop.call_soon_threadsafe(self._take, message)

    def wait_until_sent(self, limit_s: float) -> None:
        """Nothing needs to be told to a server at the end: it goes on for the next run."""

    def close(self) -> None:
        """Stops working; what is being drawn is aborted by the server, as its connections end."""
        self._loop.call_soon_threadsafe(self._stop)

    # On the loop.

    def _begin(self) -> None:
        self._spawn(self._keep_watch())
        self._spawn(self._control_in_order())

    def _take(self, message: Any) -> None:
        match message:
            case m.Submit(requests=requests):
                for request in requests:
                    self._drawing[request.id] = self._spawn(self._draw(request))
                self._note_busy()
            case m.Cancel(ids=ids):
                for i in ids:
                    if (task := self._drawing.pop(i, None)) is not None:
                        task.cancel()
                self._note_busy()
            case m.Join() | m.Receive():
                self._control.put_nowait(message)
            case m.End():
                self._stop()

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _stop(self) -> None:
        if not self._closed:
            self._closed = True
            for task in self._tasks:
                task.cancel()
            self._loop.create_task(self._client.close())

    def _say(self, message: Any) -> None:
        if not self._closed:
            self._on_message(self, message)

    def _lose(self, why: str) -> None:
        self._say(m.Failed(why))

    async def _draw(self, request: Request) -> None:
        try:
            response = await self._client.draw(request, f"{self._salt}-{self._num_syncs}", self._version)
        except (ServerError, aiohttp.ClientError, TimeoutError) as error:
            self._lose(f"a request failed: {in_words(error)}")
            return
        if self._drawing.pop(request.id, None) is not None:
            self._note_busy()
            self._say(m.Finished([(request.id, response)]))

    async def _keep_watch(self) -> None:
        """Asks the engine for a sign of life, again and again."""
        while True:
            try:
                await self._client.alive()
            except (ServerError, aiohttp.ClientError, TimeoutError) as error:
                self._lose(in_words(error))
                return
            self._say(m.Alive(self._take_busy_s()))
            await asyncio.sleep(m.HEARTBEAT_S)

    async def _control_in_order(self) -> None:
        while True:
            message = await self._control.get()
            if isinstance(message, m.Join):
                await self._join(message)
            else:
                self._say(await self._receive(message))

    async def _join(self, join: m.Join) -> None:
        self._joined = join
        try:
            await self._client.join(
                {
                    "host": join.host,
                    "port": join.port,
                    "first_rank": join.first_rank,
                    "size": join.size,
                    "timeout_s": join.timeout_s,
                    "manifest": manifest_as_json(join.manifest),
                }
            )
            self._not_joined = ""
        except (ServerError, aiohttp.ClientError, TimeoutError) as error:
            self._not_joined = in_words(error)

    async def _receive(self, command: m.Receive) -> m.Received:
        number, version = command.number, command.policy_version
        if self._not_joined:
            return m.Received(number, version, self._not_joined)
        try:
            await self._client.receive(
                number, version, with_checksums=command.with_checksums, keep_cache=self._keep_cache
            )
            checksums = await asyncio.to_thread(self._checksums, number) if command.with_checksums else None
        except (ServerError, aiohttp.ClientError, TimeoutError, RuntimeError) as error:
            self._not_joined = in_words(error)
            return m.Received(number, version, self._not_joined)
        self._num_syncs, self._version = self._num_syncs + 1, version
        return m.Received(number, version, checksums=checksums)

    def _checksums(self, number: int) -> dict[str, int]:
        """What the server's processes left at the store: the checksums of whole tensors."""
        join = self._joined
        assert join is not None
        store = find_store(join.host, join.port, join.size, join.timeout_s)
        ranks = range(join.first_rank, join.first_rank + self._num_workers)
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


def in_words(error: BaseException) -> str:
    """An error in one line."""
    return (str(error) or type(error).__name__).splitlines()[0]
