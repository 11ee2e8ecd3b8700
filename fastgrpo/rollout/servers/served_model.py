"""A model that vLLM servers hold, as an evaluation draws from it: nobody writes weights into it."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from fastgrpo.config import Config
from fastgrpo.ranks.limits import allow_open_files
from fastgrpo.rollout.servers.about import About
from fastgrpo.rollout.servers.pool import Flags, ServerFailure, ServerPool, groups_of
from fastgrpo.rollout.servers.start import named_servers, needed_of, server_key
from fastgrpo.rollout.servers.watch import ServerWatch
from fastgrpo.types import Request, Response

STEP_S = 0.2
OF_EVALUATE = Flags("--servers", "--server_key_file", "--server_start_s", "--server_stall_s")


def require_named(servers: tuple[str, ...], key_file: str) -> None:
    """Raises ValueError for what is no address, for a file that cannot be read, and for one without a key."""
    server_key(key_file, OF_EVALUATE)
    try:
        named_servers(servers, OF_EVALUATE)
    except OSError as error:
        raise ValueError(f"--servers needs addresses as http://host:8000, or a file of them: {error}") from error


class ServedModel:
    """Draws responses as an engine in this process does (`fastgrpo.rollout.engine_protocol`), from the weights that the
    servers were started with.

    Nothing is drawn before each server that is named has been asked what it is. ``dtype``: that they must compute in;
    empty for the model's setting, and where that is ``auto`` for any, if all have the same. ``on_server`` hears of each
    server before a response of it is returned.
    """

    def __init__(
        self, config: Config, dtype: str = "", on_server: Callable[[About], None] = lambda about: None
    ) -> None:
        allow_open_files()
        named, key = config.rollout.servers, server_key(config.rollout.server_key_file, OF_EVALUATE)
        dtype = dtype or ("" if config.model.dtype == "auto" else config.model.dtype)
        needed = replace(needed_of(config, dtype), model=config.model.path)
        self._pool = ServerPool(config.deadline, config.rollout.max_sequences, None, OF_EVALUATE)
        self._watch = ServerWatch(self._pool, lambda: named_servers(named, OF_EVALUATE), key, needed, keep_cache=True)
        self._on_server = on_server
        self._told: set[str] = set()  # processes that it has heard of
        self._unfinished: set[int] = set()

    def submit(self, requests: Sequence[Request]) -> None:
        """Queues requests, whose ids must be new. Those at one position have one prompt, which is read once."""
        self._unfinished.update(r.id for r in requests)
        self._pool.submit(groups_of(requests))

    def step(self) -> list[tuple[int, Response]]:
        """Waits a moment, and returns the responses that have ended, each with its request's id.

        Raises ValueError for a server that does not fit, before the first response; ConnectionError if none is there in
        time, if one refuses a request, or if its weights were written. What had ended before is returned first.
        """
        try:
            self._pool.wait(lambda: bool(self._pool.finished), STEP_S)
            if self._watch.has_looked_at_all:
                self._begin()
        except ServerFailure as failure:
            if not self._pool.finished:
                raise (ValueError if failure.is_refusal else ConnectionError)(str(failure)) from failure
        done = self._pool.take_finished()
        self._unfinished.difference_update(done)
        self._tell()
        return [(i, response) for i, response in done.items() if isinstance(response, Response)]

    def is_unfinished(self) -> bool:
        return bool(self._unfinished)

    def close(self) -> None:
        """Ends all connections. Servers stop what they draw, and go on for others."""
        self._pool.close()
        self._watch.close()

    def _begin(self) -> None:
        """Gives requests to the servers that are new: they hold the weights already."""
        self._pool.check()  # one that does not fit was looked at before
        for server in self._pool.unsynced:
            if (channel := server.channel) is not None:
                self._pool.synced(server, channel, 0)

    def _tell(self) -> None:
        for about in list(self._watch.accounts.values()):
            if about.process not in self._told:
                self._told.add(about.process)
                self._on_server(about)
