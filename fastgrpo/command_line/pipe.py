"""A command whose output nobody reads any more, as in ``fastgrpo recipes | head -1``."""

import contextlib
import errno
import os
import select
import signal
import sys
from collections.abc import Iterator

from fastgrpo.command_line.ending import tell
from fastgrpo.command_line.exit_codes import FAILED, of_signal

EXIT_UNREAD = of_signal(signal.SIGPIPE)
"""Exit code of other commands in this case: the signal's, which Python ignores."""


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


@contextlib.contextmanager
def quiet_when_unread() -> Iterator[None]:
    """Ends the process without a word where the reader of its output has left, and in one where a disk is full; any
    other error is let through."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _is_unread():
            raise  # another pipe's: an engine's, or a verifier's
        _drop_the_rest()
        raise SystemExit(EXIT_UNREAD) from None
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        tell(f"stopped: {error}")
        _drop_the_rest()
        raise SystemExit(FAILED) from None


def _drop_the_rest() -> None:
    """Python flushes once more when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_unread() -> bool:
    asked = select.poll()
    asked.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in asked.poll(0))
