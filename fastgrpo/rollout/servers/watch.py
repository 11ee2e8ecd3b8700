"""Who the servers of a run are, whether they fit, and when they are there again."""

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from fastgrpo.rollout.servers.about import About, Needed, why_not
from fastgrpo.rollout.servers.channel import HttpChannel
from fastgrpo.rollout.servers.client import ANSWER_S, INITIAL, Client, OtherWeights, ServerError, in_words, version_of
from fastgrpo.rollout.servers.home import Homes
from fastgrpo.rollout.servers.pool import Flags, Server, ServerPool
from fastgrpo.rollout.weight_sync.broadcast import address_towards

log = logging.getLogger(__name__)

LOOK_S = 1.0
CLOSE_S = 5.0


class ServerWatch:
    """Speaks to all servers on one thread, and admits to the pool those that are ready and fit.

    ``addresses`` is asked every second who the servers are: they may come and go. One that is lost is looked for until
    it answers again, or is not named any more. For an evaluation (``needed.model``) they must hold the weights of their
    start, and if any dtype will do, that of the first is the one that all must have.
    """

    def __init__(
        self,
        pool: ServerPool,
        addresses: Callable[[], list[str]],
        key: str,
        needed: Needed,
        *,
        keep_cache: bool,
        homes: Homes | None = None,
    ) -> None:
        self._pool, self._addresses, self._key, self._needed = pool, addresses, key, needed
        self._keep_cache, self._homes = keep_cache, homes
        self._loop = asyncio.new_event_loop()
        self._servers: dict[str, Server] = {}
        self.accounts: dict[str, About] = {}  # by address, of the servers that were admitted
        self._looked_at: set[str] = set()
        self._looking: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        pool.on_lost = self._look_again
        self._thread = threading.Thread(target=self._loop.run_forever, name="servers", daemon=True)
        self._thread.start()
        self._loop.call_soon_threadsafe(self._spawn, self._follow_addresses())

    @property
    def has_looked_at_all(self) -> bool:
        """Whether each server that is named has been asked once, and was admitted if it fits."""
        return bool(self._servers) and self._looked_at.issuperset(list(self._servers))

    def close(self) -> None:
        """Ends the thread, once the connections have ended."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop)
        self._thread.join(CLOSE_S)

    def _look_again(self, server: Server) -> None:
        self._loop.call_soon_threadsafe(self._look_for, server)

    # On the loop.

    def _spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = self._loop.create_task(work)
        self._tasks.add(task)  # else nobody would hold it
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("fastgrpo: a server could not be looked for", exc_info=error)
            self._pool.fail(f"a server could not be looked for: {error!r}")

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        # Channels that were closed close their connections.
        if others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others, timeout=CLOSE_S / 2)
        if self._homes is not None:
            await self._homes.close()
        self._loop.stop()

    async def _follow_addresses(self) -> None:
        said = ""
        while True:
            try:
                named, problem = self._addresses(), ""
            except (OSError, ValueError) as error:
                named, problem = list(self._servers), in_words(error)
            if problem != said and (said := problem):
                log.warning("fastgrpo: who the servers are cannot be read, so they stay as they were: %s", problem)
            for url in [u for u in self._servers if u not in named]:
                log.warning("fastgrpo: server %s is not named any more", url)
                if (task := self._looking.pop(url, None)) is not None:
                    task.cancel()
                self._pool.remove(self._servers.pop(url))
            for url in [u for u in named if u not in self._servers]:
                self._servers[url] = self._pool.add(url)
                self._look_for(self._servers[url])
            await asyncio.sleep(LOOK_S)

    def _look_for(self, server: Server) -> None:
        if self._servers.get(server.url) is server:
            self._looking[server.url] = self._spawn(self._find(server))

    async def _find(self, server: Server) -> None:
        """Looks for the server until it is there and fits. Before the run has begun, one that does not fit ends it."""
        client, said = Client(server.url, self._key), ""
        try:
            while True:
                about, reason, will_never_do = await self._asked(client)
                if about is not None and (other := self._with_process(about.process, server)):
                    reason = f"it is {other} by another name"
                if about is not None and not reason and self._homes is not None:
                    reason = await self._homes.why_out_of_reach(server.url)
                if about is not None and not reason:
                    break
                if will_never_do and not self._pool.has_begun:
                    self._pool.fail(f"server {server.url}: {reason}", is_refusal=True)
                    return
                if reason != said:
                    log.warning("fastgrpo: waiting for server %s: %s", server.url, reason)
                    said = reason
                self._looked_at.add(server.url)
                await asyncio.sleep(LOOK_S)
            self.accounts[server.url] = about
            self._needed = replace(self._needed, dtype=self._needed.dtype or about.dtype)
            self._pool.admit(server, lambda: self._channel(client, server), about.num_workers, about.max_sequences)
            self._looked_at.add(server.url)
            if said or self._pool.has_begun:  # who has read that it was missed wants to know
                log.warning("fastgrpo: server %s is there", server.url)
        finally:
            if server.channel is None:
                await client.close()

    def _with_process(self, process: str, server: Server) -> str:
        """The address of another server that is this very process; empty if there is none."""
        others = (s for s in self._pool.present if s is not server)
        return next((s.url for s in others if s.url in self.accounts and self.accounts[s.url].process == process), "")

    def _channel(self, client: Client, server: Server) -> HttpChannel:
        run = INITIAL if self._needed.model else ""
        return HttpChannel(self._loop, client, self._pool, server, self._keep_cache, self._homes, run)

    async def _asked(self, client: Client) -> tuple[About | None, str, bool]:
        """What the server is, why it cannot be taken, and whether waiting would not help."""
        try:
            about = await client.about()
            if self._needed.model:
                version_of(await client.alive(ANSWER_S), INITIAL)
        except ServerError as error:
            refusal = _refusal(error, self._pool.flags)
            return None, refusal or in_words(error), bool(refusal)
        except (aiohttp.ClientError, TimeoutError) as error:
            return None, in_words(error), False
        why = why_not(about, self._needed)  # as it is now: others may have been admitted meanwhile
        return about, why, bool(why)


def _refusal(error: ServerError, flags: Flags) -> str:
    """Why this server will never do; empty if it may only not be ready."""
    if isinstance(error, OtherWeights):
        return in_words(error)
    if error.status == 401:
        return f"it wants another key: put it into the environment as VLLM_API_KEY, or name {flags.key_file}"
    if error.status in (403, 404, 405):
        return "it has no routes for a trainer: start it with VLLM_PLUGINS=fastgrpo, or by `fastgrpo serve`"
    if error.status == 200:
        return f"it runs another version of fastgrpo: {error}"
    return ""


def host_towards(urls: Sequence[str]) -> str:
    """This host's address as all of these servers reach it: loopback only if all of them are on this host.

    Raises ValueError for a name that nobody knows.
    """
    found = []
    for url in urls:
        parts = urlsplit(url)
        try:
            found.append(address_towards(parts.hostname or "", parts.port or 80))
        except OSError as error:
            raise ValueError(f"--rollout.servers: {url}: {error}") from error
    return next((host for host in found if not ip_address(host).is_loopback), found[0])
