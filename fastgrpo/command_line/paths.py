"""Paths as a person writes them."""

import os


def expanded(path: str) -> str:
    """The path with ``~``, ``~user`` and ``$VARIABLE`` filled in, as a shell would: none has seen what stands in a
    recipe or after an equals sign. What is not known stays as it is."""
    return os.path.expanduser(os.path.expandvars(path))
