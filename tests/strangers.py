"""Hostile peers at the ports of a launch."""

import contextlib
import hashlib
import os
import pickle
import socket
import struct
from collections.abc import Iterator
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client
from pathlib import Path

import psutil

from tests.forks import Launch

Address = tuple[str, int]

NUM_SILENT = 150
SLOW_S = 5.0


class Planted:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def listening(launch: Launch) -> list[Address]:
    """Where processes of the launch listen."""
    launch.note_processes()
    found = set()
    for process in launch.processes:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            found |= {c.laddr[:2] for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    return sorted(found)


@contextlib.contextmanager
def visit(address: Address, executed: Path, secret: str) -> Iterator[None]:
    """Sends all that should do no harm, and stays, silent and many, to the end of the block. ``executed`` is what would
    be there if anything that was sent were executed."""
    bomb = pickle.dumps(Planted(executed))
    greetings = [
        b"GET / HTTP/1.1\r\n\r\n",
        os.urandom(4096),
        bomb,
        struct.pack("!i", len(bomb)) + bomb,  # as multiprocessing frames it
        struct.pack("!iQ", -1, 2**62),
        struct.pack("!i", 2**31 - 1),
        struct.pack("<Q", 2**63),
        b"\0",
    ]
    with contextlib.ExitStack() as visitors:
        for greeting in [*greetings, *[b""] * NUM_SILENT]:
            with contextlib.suppress(OSError):
                visitor = visitors.enter_context(socket.create_connection(address, timeout=SLOW_S))
                visitor.sendall(greeting)
        send_as_a_friend(address, Planted(executed), secret)
        yield


def send_as_a_friend(address: Address, what: object, secret: str) -> None:
    """As a peer that knows the secret; most ports do not ask for one."""
    with contextlib.suppress(OSError, EOFError, AuthenticationError):
        probe = socket.create_connection(address, timeout=SLOW_S)
        with probe:
            probe.settimeout(1.0)
            if not probe.recv(1):
                return
        with Client(address, authkey=hashlib.sha256(secret.encode()).digest()) as friend:
            friend.send(what)
