"""A command whose output nobody reads any more, as in ``fastgrpo recipes | head -1``."""

import contextlib
import os
import select
import signal
import sys
from collections.abc import Iterator

from fastgrpo.command_line.exit_codes import of_signal

EXIT_UNREAD = of_signal(signal.SIGPIPE)
"""Exit code of other commands in this case: the signal's, which Python ignores."""


@contextlib.contextmanager
def quiet_when_unread() -> Iterator[None]:
    """Ends the process without a word where the reader of its output has left; any other error is let through."""
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:  # closed by the shell
                sys.stdout.flush()
    except BrokenPipeError:
        if not _is_unread():
            raise  # another pipe's: an engine's, or a verifier's
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
        raise SystemExit(EXIT_UNREAD) from None


def _is_unread() -> bool:
    asked = select.poll()
    asked.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in asked.poll(0))
