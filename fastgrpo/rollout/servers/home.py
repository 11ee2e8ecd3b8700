"""Where a response's tokens stay until a step trains on them: on the rank that judges its group.

The first rank alone decides what is drawn by which server. For a group of another rank it asks that rank, which draws
it and answers with all but the tokens: none of them goes through the first rank.
"""

import asyncio
import contextlib
import hmac
import itertools
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import cast

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
class Reach:
    """A server that a rank shall look for."""

    server: str


@dataclass(frozen=True, slots=True)
class Failed:
    """Why a server did not do what it was asked. ``status`` is the server's, 0 if it gave none."""

    status: int
    message: str


class HomeFailure(RuntimeError):
    """A trainer rank that is asked does not do its part."""


Key = tuple[int, int, Sampling]
"""(position of the prompt, index in the group, how it is drawn): which response."""


class Home:
    """Draws what the first rank asks for, on a thread of its own, and keeps it until it is taken or forgotten.

    ``prompt_at`` has the training's prompts, ``training`` says how they are drawn, and ``judging`` is told of the
    responses to them.
    """

    def __init__(self, host: str, token: str, server_key: str, prompt_at: Callable[[int], Prompt]) -> None:
        self._token, self._server_key, self._prompt_at = token, server_key, prompt_at
        self.judging: Judging | None = None
        self.training: Sampling | None = None
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
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.05)
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
        if not hmac.compare_digest(raw.headers.get("Authorization", ""), f"Bearer {self._token}"):
            raise web.HTTPUnauthorized
        asked = decode(await raw.read(), [Draw, Reach, Sampling])
        told: ResponseElsewhere | Failed | None = None
        try:
            if isinstance(asked, Reach):
                await self._client(asked.server).about()
            else:
                told = (await self._draw(asked)).elsewhere()
        except FAILURES as error:
            told = Failed(error.status if isinstance(error, ServerError) else 0, in_words(error))
        return web.Response(body=encode(told))

    def _client(self, server: str) -> Client:
        if server not in self._clients:
            self._clients[server] = Client(server, self._server_key)
        return self._clients[server]

    async def _draw(self, asked: Draw) -> Response:
        key = asked.position, asked.index, asked.sampling
        with self._lock:
            self._attempts[key] = max(asked.attempt, self._attempts.get(key, -1))
            prompt, judging = self._asked_about(asked.position, asked.sampling)
        request = Request(0, prompt, asked.index, asked.sampling)
        response = await self._client(asked.server).draw(request, asked.salt, asked.run, asked.version)
        with self._lock:
            if self._attempts.get(key) == asked.attempt:  # else it was forgotten, or is drawn anew
                self._kept[key] = response
                if judging is not None:
                    judging.begin(request, response)
        return response

    def _asked_about(self, position: int, sampling: Sampling) -> tuple[Prompt, Judging | None]:
        if sampling == self.training and (position, sampling) not in self._others:
            return self._prompt_at(position), self.judging
        return self._others[position, sampling]  # KeyError: of a request that was taken back and comes late


class Homes:
    """The ranks as the first one asks them: the group at a position belongs to rank ``position % count``."""

    def __init__(self, urls: Sequence[str], token: str) -> None:
        self._urls, self._headers = urls, {"Authorization": f"Bearer {token}"}
        self._attempts = itertools.count()
        self._session: aiohttp.ClientSession | None = None

    async def draw(
        self, client: Client, request: Request, salt: str, run: str, version: int
    ) -> Response | ResponseElsewhere:
        """Has the server draw a response, whose tokens stay with the rank that judges it. Raises as `Client` does, and
        HomeFailure."""
        position = request.prompt.position
        if (rank := home_of(position, len(self._urls) + 1)) == 0:
            return await client.draw(request, salt, run, version)
        attempt = next(self._attempts)
        draw = Draw(client.url, salt, run, version, attempt, position, request.index, request.sampling)
        told = await self._ask(rank, draw)
        if isinstance(told, ResponseElsewhere):
            return told
        assert told is not None
        if told.status:
            raise ServerError(told.status, told.message)
        raise aiohttp.ClientError(f"trainer rank {rank} says: {told.message}")

    async def why_out_of_reach(self, server: str) -> str:
        """Why a rank cannot ask this server, which the first one can; empty if all can. Raises HomeFailure."""
        for rank in range(1, len(self._urls) + 1):
            told = await self._ask(rank, Reach(server))
            if isinstance(told, Failed):
                return f"trainer rank {rank} cannot ask it: {told.message}"
        return ""

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _ask(self, rank: int, asked: Draw | Reach) -> ResponseElsewhere | Failed | None:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                headers=self._headers,
                connector=aiohttp.TCPConnector(limit=0, force_close=True),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
            )
        url = self._urls[rank - 1]
        try:
            async with self._session.post(url + PATH, data=encode(asked)) as answer:
                answer.raise_for_status()
                return cast(ResponseElsewhere | Failed | None, decode(await answer.read(), [ResponseElsewhere, Failed]))
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            reason = f"trainer rank {rank} did not answer the first one at {url}: {in_words(error)}"
            raise HomeFailure(reason) from error


def home_of(position: int, num_ranks: int) -> int:
    """The rank that judges the group at this position."""
    return position % num_ranks
