"""What the system must allow a process of a launch."""

import resource

OPEN_FILES = 64
"""A rank with a verifier and a tracker has some 30 files and sockets open; torch ends with a traceback where it lacks
one."""


def require_open_files() -> None:
    """Raises ValueError if this process may open too few files to train."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= limit < OPEN_FILES:
        raise ValueError(
            f"a process may have {limit} files open here, and a rank needs {OPEN_FILES} at least: raise the limit, "
            f"`ulimit -n 1024`"
        )
