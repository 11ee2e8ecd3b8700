"""What a launch tells its own servers: that they may begin, by which key, and that it is over.

The store, which strangers may read on several nodes, says only where the key is.
"""

import os
import re
import secrets
import time
from pathlib import Path

from fastgrpo.ranks.secret import SECRET, launch_secret

BEGIN, OVER = "servers/begin", "servers/over"
"""Keys of the launch's store: where the servers' key is, once their model is there; a mark that the run has ended."""

FOUND_S = 10.0
"""A file system that nodes share may show a file so much later."""


def published_key(folder: Path) -> tuple[str, str]:
    """The key, and what the store may tell of it: the file that has it if the launcher gave no secret. The file is in
    the run's folder, and of this user alone."""
    if (secret := launch_secret()) is not None:
        return secret.hex(), "-"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(".key_*"):
        old.unlink(missing_ok=True)
    key, name = secrets.token_hex(32), f".key_{secrets.token_hex(8)}"
    with os.fdopen(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(key)
    return key, name


def found_key(text: str, folder: Path) -> str:
    """The key that was published. Raises ValueError for a text that nobody published, or a key that is not there."""
    if re.fullmatch(r"-|\.key_[0-9a-f]{16}", text) is None:
        raise ValueError(f"the launch's store does not tell of a key of servers: {text[:100]!r}")
    if text != "-":
        return _read(folder / text)
    if (secret := launch_secret()) is None:
        raise ValueError(f"the first rank was given {SECRET} and this one was not: give all nodes the same")
    return secret.hex()


def _read(path: Path) -> str:
    deadline = time.monotonic() + FOUND_S
    while True:
        try:
            return path.read_text()
        except OSError as error:
            if time.monotonic() > deadline:
                raise ValueError(
                    f"the key of the servers cannot be read ({error}): the run's folder must be shared by all nodes, "
                    f"or {SECRET} be in the environment of all"
                ) from error
            time.sleep(0.1)
