"""A vLLM server with a trainer's routes, as it looks over HTTP: it draws what a test says, and answers when it may."""

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from aiohttp import web

from fastgrpo.rollout.servers.drawn import Drawn
from tests.rollout.servers.accounts import about
from tests.rollout.servers.replica import Replica
from tests.rollout.servers.until import LONG_S

ABOUT, ALIVE, GENERATE, JOIN, RECEIVE = (
    f"/inference/fastgrpo/{route}" for route in ("about", "alive", "generate", "join", "receive")
)


@dataclass
class Asked:
    """A request that a server got."""

    path: str
    body: Any
    headers: dict[str, str]
    hung_up: bool = False  # the client ended the connection before there was an answer


class FakeServer:
    """Listens on a free port of this machine, on a thread of its own, until the block ends.

    What it is told may change at any time: ``key`` (without it every guarded route is a 401), ``about``, ``drawn``
    (for every request), ``refusals`` (status and body of a path's answers; bytes go out as they are), ``replicas`` (its
    workers' weights).
    """

    def __init__(self, key: str = "", replicas: tuple[Replica, ...] = ()) -> None:
        self.key, self.replicas = key, replicas
        self.about: Any = about().to_json()
        self.drawn = drawn_of([5, 6])
        self.refusals: dict[str, tuple[int, Any]] = {}
        self.label = "default"  # of its weights, as the last sync named them
        self.asked: list[Asked] = []
        self._held: set[str] = set()  # paths that get no answer for now
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fake server", daemon=True)
        self._runner: web.AppRunner | None = None
        self._port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        self.come()
        return self

    def __exit__(self, *_: object) -> None:
        self.die()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(LONG_S)
        self._loop.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def num_connections(self) -> int:
        return 0 if self._runner is None else len(self._runner.server.connections)

    def come(self) -> None:
        """Listens, after its end at the same port as before."""
        self._do(self._come())

    def die(self) -> None:
        """Ends all connections at once, as the process's end does. Nobody listens any more."""
        self._do(self._die())

    def hold(self, path: str) -> None:
        """From now on requests for this path wait until they are released."""
        self._held.add(path)

    def release(self, path: str) -> None:
        self._held.discard(path)

    def of(self, path: str) -> list[Asked]:
        """Requests for this path, in the order in which they came."""
        return [asked for asked in self.asked if asked.path == path]

    def _do(self, work: Awaitable[None]) -> None:
        asyncio.run_coroutine_threadsafe(_awaited(work), self._loop).result(LONG_S)

    # On its thread.

    async def _come(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.0)
        await self._runner.setup()
        self._listener = socket.create_server(("127.0.0.1", self._port))
        self._port = self._listener.getsockname()[1]
        await web.SockSite(self._runner, self._listener).start()

    async def _die(self) -> None:
        if self._runner is None:
            return
        runner, self._runner = self._runner, None
        self._loop.remove_reader(self._listener.fileno())
        for _ in range(10):  # connections that are half made would be neither served nor ended
            await asyncio.sleep(0)
        for connection in list(runner.server.connections):
            if connection.transport is not None:
                connection.transport.abort()
        await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        asked = Asked(request.path, await request.json() if request.can_read_body else None, dict(request.headers))
        self.asked.append(asked)
        try:
            while asked.path in self._held:
                await asyncio.sleep(0.005)
            status, body = await self._found(asked)
        except asyncio.CancelledError:
            asked.hung_up = True
            raise
        if isinstance(body, bytes):
            return web.Response(body=body, status=status)
        return web.json_response(body, status=status)

    async def _found(self, asked: Asked) -> tuple[int, Any]:
        if self.key and asked.headers.get("Authorization") != f"Bearer {self.key}":
            return 401, {"error": "Unauthorized"}
        if asked.path in self.refusals:
            return self.refusals[asked.path]
        match asked.path:
            case "/inference/fastgrpo/about":
                return 200, self.about
            case "/inference/fastgrpo/alive":
                return 200, {"version": self.label}
            case "/inference/fastgrpo/generate":
                return 200, self.drawn.to_bytes()
            case "/inference/fastgrpo/join":
                return await self._of_all({"joined": True}, lambda r, place: r.join(asked.body, place))
            case "/inference/fastgrpo/receive":
                number, with_checksums, self.label = (asked.body[n] for n in ("number", "with_checksums", "label"))
                return await self._of_all({"number": number}, lambda r, _: r.receive(number, with_checksums))
        return 404, {"detail": "Not Found"}

    async def _of_all(self, answer: Any, work: Callable[[Replica, int], None]) -> tuple[int, Any]:
        """The answer, once all workers have done the work."""
        jobs = [asyncio.to_thread(work, replica, place) for place, replica in enumerate(self.replicas)]
        try:
            await asyncio.gather(*jobs)
        except Exception as error:
            return refusal(500, f"Worker failed with error '{error}'")
        return 200, answer


async def _awaited(work: Awaitable[None]) -> None:
    await work


def refusal(status: int, message: str) -> tuple[int, Any]:
    """An error as vLLM answers it."""
    return status, {"error": {"message": message, "type": "Error", "param": None, "code": status}}


def drawn_of(
    ids: list[int],
    logprobs: list[float] | None = None,
    *,
    finish_reason: str | None = "length",
    spans: tuple[tuple[int, str], ...] = (),
) -> Drawn:
    """A response, whose logprobs are all -1 if they are not given."""
    values = [-1.0] * len(ids) if logprobs is None else logprobs
    return Drawn(finish_reason, np.array(ids, np.int32), np.array(values, np.float32), spans)
