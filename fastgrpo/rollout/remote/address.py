"""Where the pool listens, and the secret that opens it. The launch's store tells the first alone: on several nodes
strangers can read it."""

import os
import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from fastgrpo.ranks.secret import SECRET, launch_secret

FOUND_S = 10.0
"""A file system that nodes share may show a file so much later."""


@dataclass(frozen=True, slots=True)
class Address:
    host: str
    port: int
    secret: bytes


def new_secret() -> bytes:
    """The launch's secret, or one of this pool alone where the launcher gave none."""
    return launch_secret() or secrets.token_bytes(32)


def published(address: Address, folder: Path) -> str:
    """What the store may tell: host, port, and the file that has the secret if the launcher gave none. It is in the
    run's folder, and of this user alone."""
    if launch_secret() is not None:
        return f"{address.host} {address.port} -"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(".pool_*"):
        old.unlink(missing_ok=True)
    name = f".pool_{secrets.token_hex(8)}"
    with os.fdopen(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(address.secret)
    return f"{address.host} {address.port} {name}"


def find(text: str, folder: Path) -> Address:
    """The address that was published. Raises ValueError for a text that no pool has written, or a secret that is not
    there."""
    parts = re.fullmatch(r"(\S+) (\d{1,5}) (-|\.pool_[0-9a-f]{16})", text)
    if parts is None:
        raise ValueError(f"the launch's store has no address of an engine pool: {text[:100]!r}")
    host, port, name = parts.groups()
    secret = launch_secret() if name == "-" else _read(folder / name)
    if secret is None:
        raise ValueError(f"the first rank was given {SECRET} and this one was not: give all nodes the same")
    return Address(host, int(port), secret)


def _read(path: Path) -> bytes:
    deadline = time.monotonic() + FOUND_S
    while True:
        try:
            return path.read_bytes()
        except OSError as error:
            if time.monotonic() > deadline:
                raise ValueError(
                    f"the secret of the engine pool cannot be read ({error}): the run's folder must be shared by all "
                    f"nodes, or {SECRET} be in the environment of all"
                ) from error
            time.sleep(0.1)
