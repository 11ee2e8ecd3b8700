"""What the system must allow a process of a launch."""

import resource

OPEN_FILES = 64
"""A rank with a verifier and a tracker has some 30 files and sockets open; torch ends with a traceback where it lacks
one."""


MOST_OPEN_FILES = 2**18
"""Containers may have a thousand million, and some programs that are started close every one of them."""


def require_open_files() -> None:
    """Raises ValueError if this process may open too few files to train."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= limit < OPEN_FILES:
        raise ValueError(
            f"a process may have {limit} files open here, and a rank needs {OPEN_FILES} at least: raise the limit, "
            f"`ulimit -n 1024`"
        )


def allow_open_files() -> None:
    """Raises this process's limit to what its user may have: every response that a server draws has a connection, and
    the usual limit of a login, 1024, is less than a step's responses."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_OPEN_FILES)
    if 0 <= soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
