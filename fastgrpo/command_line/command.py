"""How every command begins and ends, whatever it does."""

import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from fastgrpo.command_line.ending import end_in_a_line, handle
from fastgrpo.command_line.pipe import quiet_when_unread
from fastgrpo.command_line.streams import open_closed_streams


def run_command(main: Callable[[], int], *, is_rank: bool = False) -> NoReturn:
    """Runs a command and exits with the code that it returns.

    A signal that announces the end ends it in one line, unless it has a better answer. A rank is ended by the kernel,
    without a word: it may wait for another one where no handler runs, and the launcher speaks for all.
    """
    open_closed_streams()
    handle(signal.SIG_DFL if is_rank else end_in_a_line)
    with quiet_when_unread():
        code = main()
    handle(signal.SIG_IGN)  # the code says what became of the work, and no late signal changes it
    sys.exit(code)
