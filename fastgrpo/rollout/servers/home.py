"""Where a response's tokens stay until a step trains on them: on the rank that judges its group.

The first rank alone decides what is drawn by which server. For a group of another rank it asks that rank, which draws
it and answers with all but the tokens: none of them goes through the first rank.
"""

import asyncio
import contextlib
import itertools
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import aiohttp
from aiohttp import web

from fastgrpo.algorithm.judging import Judging
from fastgrpo.codec import decode, encode
from fastgrpo.rollout.servers.client import CONNECT_S, Client, ServerError, in_words, url_of
from fastgrpo.types import Prompt, Request, Response, ResponseElsewhere, Sampling

PATH = "/draw"
CLOSE_S = 5.0
FAILURES = (ServerError, aiohttp.ClientError, TimeoutError)


@dataclass(frozen=True, slots=True)
class Draw:
    """A response that a rank shall have drawn, and keep."""

    server: str
    salt: str
    run: str
    version: int
    attempt: int  # of all that were asked: a later one for the same response counts
    position: int
    index: int
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class Failed:
    """Why a response was not drawn. ``status`` is the server's, 0 if it gave none."""

    status: int
    message: str


Key = tuple[int, int, Sampling]
"""(position of the prompt, index in the group, how it is drawn): which response."""


class Home:
    """Draws what the first rank asks for, on a thread of its own, and keeps it until it is taken or forgotten.

    ``prompt_at`` has the training's prompts. ``judging`` is told of the responses to them.
    """

    def __init__(self, host: str, token: str, server_key: str, prompt_at: Callable[[int], Prompt]) -> None:
        self._token, self._server_key, self._prompt_at = token, server_key, prompt_at
        self.judging: Judging | None = None
        self._others: dict[tuple[int, Sampling], tuple[Prompt, Judging | None]] = {}
        self._attempts: dict[Key, int] = {}
        self._kept: dict[Key, Response] = {}
        self._clients: dict[str, Client] = {}
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="responses", daemon=True)
        self._thread.start()
        self.url = asyncio.run_coroutine_threadsafe(self._listen(host), self._loop).result()

    def expect(self, prompts: Iterable[Prompt], sampling: Sampling, judging: Judging | None) -> None:
        """Prompts beside the training's that may be asked for from now on, and who is told of their responses."""
        with self._lock:
            self._others.update({(p.position, sampling): (p, judging) for p in prompts})

    def take(self, position: int, sampling: Sampling) -> list[Response]:
        """The responses of a group that is finished. They are kept no longer."""
        with self._lock:
            keys = [(position, index, sampling) for index in range(sampling.group_size)]
            self._others.pop((position, sampling), None)
            for key in keys:
                self._attempts.pop(key, None)
            return [self._kept.pop(key) for key in keys]

    def forget(self, positions: Iterable[int], sampling: Sampling) -> None:
        """Drops what has come of these groups, and what may still come."""
        with self._lock:
            for key in [(p, index, sampling) for p in positions for index in range(sampling.group_size)]:
                self._attempts.pop(key, None)
                self._kept.pop(key, None)

    def put(self, position: int, responses: dict[int, Response], sampling: Sampling) -> None:
        """Keeps responses, by index in the group, that were drawn before."""
        with self._lock:
            self._kept.update({(position, index, sampling): r for index, r in responses.items()})

    def of(self, position: int, indices: Iterable[int], sampling: Sampling) -> dict[int, Response]:
        """The responses of these indices, which stay."""
        with self._lock:
            return {index: self._kept[position, index, sampling] for index in indices}

    def close(self) -> None:
        """Ends the thread, once the connections have ended."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop)
        self._thread.join(CLOSE_S)

    # On the loop.

    async def _listen(self, host: str) -> str:
        app = web.Application(client_max_size=2**20)
        app.router.add_post(PATH, self._answer)
        # A request that the first rank takes back is taken back from the server.
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, 0, backlog=4096)
        await site.start()
        return url_of(*self._runner.addresses[0][:2])

    async def _end(self) -> None:
        with contextlib.suppress(Exception):
            await self._runner.cleanup()
            for client in self._clients.values():
                await client.close()
        self._loop.stop()

    async def _answer(self, raw: web.Request) -> web.Response:
        if raw.headers.get("Authorization") != f"Bearer {self._token}":
            raise web.HTTPUnauthorized
        asked = decode(await raw.read(), [Draw, Sampling])
        try:
            told: ResponseElsewhere | Failed = (await self._draw(asked)).elsewhere()
        except FAILURES as error:
            told = Failed(error.status if isinstance(error, ServerError) else 0, in_words(error))
        return web.Response(body=encode(told))

    async def _draw(self, asked: Draw) -> Response:
        key = asked.position, asked.index, asked.sampling
        with self._lock:
            self._attempts[key] = max(asked.attempt, self._attempts.get(key, -1))
            other = self._others.get((asked.position, asked.sampling))
        prompt, judging = other or (self._prompt_at(asked.position), self.judging)
        if asked.server not in self._clients:
            self._clients[asked.server] = Client(asked.server, self._server_key)
        request = Request(0, prompt, asked.index, asked.sampling)
        response = await self._clients[asked.server].draw(request, asked.salt, asked.run, asked.version)
        with self._lock:
            if self._attempts.get(key) != asked.attempt:
                return response  # it was forgotten, or is drawn anew
            self._kept[key] = response
            if judging is not None:
                judging.begin(request, response)
        return response


class Homes:
    """The ranks as the first one asks them: the group at a position belongs to rank ``position % count``."""

    def __init__(self, urls: Sequence[str], token: str) -> None:
        self._urls, self._headers = urls, {"Authorization": f"Bearer {token}"}
        self._attempts = itertools.count()
        self._session: aiohttp.ClientSession | None = None

    def of(self, position: int) -> int:
        """The rank that judges the group at this position."""
        return home_of(position, len(self._urls) + 1)

    async def draw(
        self, client: Client, request: Request, salt: str, run: str, version: int
    ) -> Response | ResponseElsewhere:
        """Has the server draw a response, whose tokens stay with the rank that judges it. Raises as `Client` does."""
        if (rank := self.of(request.prompt.position)) == 0:
            return await client.draw(request, salt, run, version)
        attempt, position = next(self._attempts), request.prompt.position
        draw = Draw(client.url, salt, run, version, attempt, position, request.index, request.sampling)
        told = await self._ask(self._urls[rank - 1], draw)
        if isinstance(told, Failed) and told.status:
            raise ServerError(told.status, told.message)
        if isinstance(told, Failed):
            raise aiohttp.ClientError(told.message)
        return told

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _ask(self, url: str, draw: Draw) -> ResponseElsewhere | Failed:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                headers=self._headers,
                connector=aiohttp.TCPConnector(limit=0, force_close=True),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
            )
        async with self._session.post(url + PATH, data=encode(draw)) as answer:
            answer.raise_for_status()
            told = decode(await answer.read(), [ResponseElsewhere, Failed])
            assert isinstance(told, ResponseElsewhere | Failed)
            return told


def home_of(position: int, num_ranks: int) -> int:
    """The rank that judges the group at this position."""
    return position % num_ranks
