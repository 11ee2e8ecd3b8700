"""What the pool and an engine process say to each other, over an authenticated connection.

The pool opens no connection: engine processes and their supervisors come to it, so that they may be on any host.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Client, Connection, Listener, answer_challenge, deliver_challenge

from fastgrpo.rollout.weight_sync import Manifest
from fastgrpo.types import Request, Response

BEAT_S = 1.0
"""An engine process says something at least so often, between two steps of its engine."""


INTRODUCTION_S = 10.0


@dataclass(frozen=True, slots=True)
class Address:
    """Where the pool listens, and the secret that a peer must know."""

    host: str
    port: int
    secret: bytes

    def encode(self) -> str:
        return f"{self.host} {self.port} {self.secret.hex()}"

    @classmethod
    def decode(cls, text: str) -> "Address":
        host, port, secret = text.split()
        return cls(host, int(port), bytes.fromhex(secret))


# An engine process, or the supervisor that starts it anew, introduces itself.
@dataclass(frozen=True, slots=True)
class Hello:
    engine: int
    is_supervisor: bool
    process: str  # pid and host, for messages to people
    num_workers: int = 1  # processes that hold weights
    note: str = ""  # for people


# To an engine.
@dataclass(frozen=True, slots=True)
class Submit:
    requests: Sequence[Request]


@dataclass(frozen=True, slots=True)
class Cancel:
    ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class Join:
    """Meet the sender of weights: the engine's processes take the ranks from ``first_rank`` on."""

    host: str
    port: int
    first_rank: int
    size: int
    timeout_s: float
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Receive:
    number: int  # of the attempt: the answer carries it
    policy_version: int
    with_checksums: bool


@dataclass(frozen=True, slots=True)
class End:
    pass


# To a supervisor.
@dataclass(frozen=True, slots=True)
class Restart:
    pass


# From an engine.
@dataclass(frozen=True, slots=True)
class Alive:
    """Sent every second whatever else there is to say."""

    busy_s: float  # spent in steps since the last word


@dataclass(frozen=True, slots=True)
class Finished:
    responses: Sequence[tuple[int, Response]]


@dataclass(frozen=True, slots=True)
class Received:
    """Weights arrived, or why they did not."""

    number: int
    policy_version: int
    error: str = ""
    checksums: dict[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """The engine's last word."""

    error: str


# From a supervisor.
@dataclass(frozen=True, slots=True)
class Exited:
    """A process that it had started ended; the pool may never have heard of it."""

    process: str
    reason: str


def listen(host: str) -> tuple[Listener, int]:
    """A listener on a free port. Nobody is trusted before `welcome`."""
    listener = Listener((host, 0), backlog=64)
    return listener, listener.address[1]


def welcome(connection: Connection, secret: bytes) -> Hello:
    """Raises AuthenticationError, EOFError, OSError or AssertionError for a stranger. Nothing is unpickled before."""
    deliver_challenge(connection, secret)
    answer_challenge(connection, secret)
    if not connection.poll(INTRODUCTION_S):
        raise OSError("a peer did not introduce itself")
    hello = connection.recv()
    if not isinstance(hello, Hello):
        raise OSError(f"a peer introduced itself as {hello!r}")
    return hello


def call(address: Address, hello: Hello) -> Connection:
    """Connects to the pool and introduces this process."""
    connection = Client((address.host, address.port), authkey=address.secret)
    connection.send(hello)
    return connection
