"""The messages between the pool and the engine processes, which travel over an authenticated connection.

Engine processes and their supervisors connect to the pool, so they may be on any host.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Client, Connection, Listener, answer_challenge, deliver_challenge

from fastgrpo.rollout.weight_sync import Manifest
from fastgrpo.types import Request, Response

HEARTBEAT_S = 1.0
"""An engine process sends a message at least this often, between two steps of its engine."""
HELLO_TIMEOUT_S = 10.0


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


def listen(host: str) -> tuple[Listener, int]:
    """A listener on a free port. Its connections are trusted only after `authenticate`."""
    listener = Listener((host, 0), backlog=64)
    return listener, listener.address[1]


def authenticate(connection: Connection, secret: bytes) -> Hello:
    """The first message of a peer that knows the secret. Nothing is unpickled before that is proved.

    Raises AuthenticationError, EOFError, OSError or AssertionError for any other peer.
    """
    deliver_challenge(connection, secret)
    answer_challenge(connection, secret)
    if not connection.poll(HELLO_TIMEOUT_S):
        raise OSError(f"a peer sent nothing in {HELLO_TIMEOUT_S:g} s")
    hello = connection.recv()
    if not isinstance(hello, Hello):
        raise OSError(f"the first message of a peer must be Hello, got {type(hello).__name__}")
    return hello


def connect(address: Address, hello: Hello) -> Connection:
    """Connects to the pool and sends the first message."""
    connection = Client((address.host, address.port), authkey=address.secret)
    connection.send(hello)
    return connection
