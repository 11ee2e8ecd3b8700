"""The servers of a run: who they are, whether they fit, and when they are there again."""

import asyncio
import logging
import socket
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol
from urllib.parse import urlsplit

import aiohttp

from fastgrpo.rollout.servers.about import Needed, why_not
from fastgrpo.rollout.servers.channel import OnMessage, ServerChannel, in_words
from fastgrpo.rollout.servers.client import Client, ServerError

log = logging.getLogger(__name__)

MakeChannel = Callable[[OnMessage], ServerChannel]

LOOK_S = 1.0
CLOSE_S = 5.0


class Pool(Protocol):
    """What the servers need of the pool."""

    def admit_server(self, index: int, process: str, num_workers: int, make: MakeChannel) -> None:
        """Takes a server in that is ready; ``make`` makes its channel."""
        ...

    def fail(self, reason: str) -> None:
        """Ends the run."""
        ...


class Servers:
    """Speaks to all servers on one thread. A server that is lost is looked for until it answers again."""

    def __init__(self, urls: Sequence[str], key: str, needed: Needed, *, keep_cache: bool) -> None:
        self.urls, self._key, self._needed, self._keep_cache = list(urls), key, needed, keep_cache
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="servers", daemon=True)
        self._pool: Pool | None = None

    def host_of_trainer(self) -> str:
        """The address of this host on its way to the first server. Raises ValueError for a server's name that nobody
        knows."""
        parts = urlsplit(self.urls[0])
        try:
            with socket.socket(
                socket.AF_INET, socket.SOCK_DGRAM
            ) as probe:  # connecting it sends nothing
                probe.connect((parts.hostname, parts.port or 80))
                return str(probe.getsockname()[0])
        except OSError as error:
            raise ValueError(f"--rollout.servers: {self.urls[0]}: {error}") from error

    def open(self, pool: Pool) -> None:
        """Begins to look for the servers, and admits each that is ready."""
        self._pool = pool
        self._thread.start()
        for index in range(len(self.urls)):
            self.look_for(index)

    def look_for(self, index: int) -> None:
        """Looks for a server until it is ready."""
        asyncio.run_coroutine_threadsafe(self._find(index), self._loop)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CLOSE_S)

    async def _find(self, index: int) -> None:
        assert self._pool is not None
        url, said, client = self.urls[index], "", Client(self.urls[index], self._key)
        while True:
            try:
                about = await client.about()
                break
            except ServerError as error:
                if why := _refusal(error):
                    self._pool.fail(f"server {url}: {why}")
                    return
                reason = in_words(error)
            except (aiohttp.ClientError, TimeoutError, TypeError) as error:
                reason = in_words(error)
            if reason != said:
                log.warning("fastgrpo: waiting for server %s: %s", url, reason)
                said = reason
            await asyncio.sleep(LOOK_S)
        if why := why_not(about, self._needed):
            self._pool.fail(f"server {url}: {why}")
            return
        channel = partial(ServerChannel, self._loop, client, about.num_workers, self._keep_cache)
        self._pool.admit_server(index, url, about.num_workers, channel)


def _refusal(error: ServerError) -> str:
    """Why this server will never do; empty if it may only not be ready."""
    if error.status == 401:
        return "it wants another key: put it into the environment as VLLM_API_KEY, or name --rollout.server_key_file"
    if error.status in (404, 405):
        return "it has no routes for a trainer: start it with VLLM_PLUGINS=fastgrpo, or by `fastgrpo serve`"
    return ""
