"""The secret by which the processes of a launch know each other. It lies in no store, which strangers may read."""

import functools
import hashlib
import os
import secrets

SECRET = "FASTGRPO_SECRET"
"""The environment variable that has it: the same text on every node. ``fastgrpo train`` makes one for each launch."""

MIN_CHARACTERS = 16


def new_secret() -> str:
    return secrets.token_hex(32)


@functools.cache
def launch_secret() -> bytes | None:
    """What the launcher's environment names, None without it. It is taken out of the environment, which verifiers and
    what they run would inherit. Raises ValueError if it is easily guessed."""
    text = os.environ.pop(SECRET, "")
    if text and len(text) < MIN_CHARACTERS:
        raise ValueError(
            f"{SECRET} must have at least {MIN_CHARACTERS} characters, got {len(text)}: openssl rand -hex 32"
        )
    return hashlib.sha256(text.encode()).digest() if text else None
