"""The messages between the pool and the engine processes, which travel over an authenticated connection.

Engine processes and their supervisors connect to the pool, so they may be on any host. Nothing that comes over the
connection is executed: a message is a value of `fastgrpo.codec`, never a pickle.
"""

import contextlib
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Client, Connection, Listener, answer_challenge, deliver_challenge
from typing import Any

from fastgrpo.codec import decode, encode
from fastgrpo.rollout.remote.address import Address
from fastgrpo.rollout.weight_sync import Manifest
from fastgrpo.types import Prompt, Request, Response, Sampling

HEARTBEAT_S = 1.0
"""An engine process sends a message at least this often, between two steps of its engine."""
MAX_HELLO_BYTES = 4096
MAX_MESSAGE_BYTES = 2**31 - 1  # of a peer that has proved who it is


@dataclass(frozen=True, slots=True)
class Hello:
    """The first message of an engine process, or of the supervisor that starts it anew."""

    engine: int
    is_supervisor: bool
    process: str  # pid and host, for log messages
    num_workers: int = 1  # processes that hold weights
    note: str = ""  # for the log


# To an engine.
@dataclass(frozen=True, slots=True)
class Submit:
    requests: Sequence[Request]


@dataclass(frozen=True, slots=True)
class Cancel:
    ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class Join:
    """Join the sender's process group: the engine's processes take the ranks from ``first_rank`` on."""

    host: str
    port: int
    first_rank: int
    size: int
    timeout_s: float
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Receive:
    """Receive weights."""

    number: int  # of the attempt: the answer has it too
    policy_version: int
    with_checksums: bool


@dataclass(frozen=True, slots=True)
class End:
    pass


ToEngine = Submit | Cancel | Join | Receive | End


# To a supervisor.
@dataclass(frozen=True, slots=True)
class Restart:
    pass


# From an engine.
@dataclass(frozen=True, slots=True)
class Alive:
    """Sent every second, besides all other messages."""

    busy_s: float  # spent in steps since the last Alive


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
    """The engine raised an error, and its process ends after this message."""

    error: str


# From a supervisor.
@dataclass(frozen=True, slots=True)
class Exited:
    """The engine process ended, perhaps before it had connected to the pool."""

    process: str
    reason: str


TYPES = (Prompt, Request, Response, Sampling, Submit, Cancel, Join, Receive, End, Restart)
TYPES_OF_PEERS = (Response, Hello, Alive, Finished, Received, Failed, Exited)


def send(connection: Connection, message: Any) -> None:
    connection.send_bytes(encode(message))


def receive(connection: Connection, *, from_peer: bool, max_bytes: int = MAX_MESSAGE_BYTES) -> Any:
    """The next message: to the pool if it is ``from_peer``, else from it. Raises ValueError if it is none, EOFError or
    OSError if the connection has ended or names more bytes."""
    return decode(connection.recv_bytes(max_bytes), TYPES_OF_PEERS if from_peer else TYPES)


def hang_up(connection: Connection) -> None:
    """Ends a connection for both sides. ``close`` would not wake a thread that is inside send or receive."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as end:
        end.shutdown(socket.SHUT_RDWR)


def listen(host: str) -> tuple[Listener, int]:
    """A listener on a free port. Its connections are trusted only after `authenticate`."""
    listener = Listener((host, 0), backlog=64)
    return listener, listener.address[1]


def authenticate(connection: Connection, secret: bytes, num_engines: int) -> Hello:
    """The first message of a peer that knows the secret. Before that is proved nothing that it sends is parsed.

    Raises AuthenticationError, EOFError, OSError, ValueError or AssertionError for any other peer. It may wait for
    ever: the caller limits that.
    """
    deliver_challenge(connection, secret)
    answer_challenge(connection, secret)
    hello = receive(connection, from_peer=True, max_bytes=MAX_HELLO_BYTES)
    if not isinstance(hello, Hello) or not 0 <= hello.engine < num_engines:
        raise ValueError(f"the first message must be a Hello of an engine below {num_engines}, got {str(hello)[:200]}")
    return hello


def connect(address: Address, hello: Hello) -> Connection:
    """Connects to the pool and sends the first message."""
    connection = Client((address.host, address.port), authkey=address.secret)
    send(connection, hello)
    return connection
