"""A server without sockets: a channel that notes what the pool asks of it, and says what a test wants."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastgrpo.rollout.generate import requests_of
from fastgrpo.rollout.servers.pool import Received, Server, ServerPool
from fastgrpo.types import Prompt, Request, Response, Sampling

SAMPLING = Sampling(group_size=2, max_response_tokens=4)


def group(position: int, *, prompt_tokens: int = 1, sampling: Sampling = SAMPLING) -> list[Request]:
    """The requests of a prompt; with groups of two their ids are twice its position, and the next."""
    prompt = Prompt.of_ids(np.zeros(prompt_tokens, np.int32), position)
    return requests_of([prompt], sampling, first_id=sampling.group_size * position)


def response() -> Response:
    return Response(np.zeros(1, np.int32), np.zeros(1, np.float32), "stop", 0)


class FakeChannel:
    """What a server's process is told, and what it tells. It is there as soon as it is made."""

    def __init__(self, pool: ServerPool, server: Server, *, num_workers: int = 1, max_sequences: int = 64) -> None:
        self.pool, self.server = pool, server
        self.drawing: dict[int, Request] = {}
        self.ids: list[int] = []  # of all that it was ever given
        self.cancelled: list[int] = []
        self.meetings: list[Any] = []
        self.asked: list[int] = []  # numbers of syncs
        self.is_closed = False
        pool.admit(server, lambda: self, num_workers, max_sequences)

    def draw(self, requests: Sequence[Request]) -> None:
        self.drawing.update({r.id: r for r in requests})
        self.ids += [r.id for r in requests]

    def cancel(self, ids: Sequence[int]) -> None:
        self.cancelled += ids

    def join(self, meeting: Any) -> None:
        self.meetings.append(meeting)

    def receive(self, number: int, version: int, *, with_checksums: bool) -> None:
        self.asked.append(number)

    def close(self) -> None:
        self.is_closed = True

    def finish(self, *ids: int) -> None:
        for i in ids:
            self.pool.on_response(self.server, self, self.drawing[i], response())

    def say(self, busy_s: float = 0.0) -> None:
        self.pool.on_alive(self.server, self, busy_s)

    def die(self, why: str = "its connection ended") -> None:
        self.pool.lose(self.server, self, why)

    def received(self, error: str = "", *, number: int | None = None) -> None:
        self.pool.on_received(self.server, self, Received(self.asked[-1] if number is None else number, 1, error))


def ready(pool: ServerPool, server: Server, version: int = 0, **about: int) -> FakeChannel:
    """A server that is there and holds weights."""
    channel = FakeChannel(pool, server, **about)
    pool.synced(server, channel, version)
    return channel
