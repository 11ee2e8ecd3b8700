"""Child processes that end with their parent, even if the parent is killed: an orphan would hold its GPU, or write into
files that another process goes on with.

As a program it is what such a child does before its own begins. Python that ran between fork and exec could wait for
ever for a lock, or crash: the fork has one of its parent's threads, and what the others were doing stays half done.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def ending_with_parent(command: Sequence[str], number: int = signal.SIGKILL) -> list[str]:
    """The command for a process that the kernel sends this signal when the process ends that starts it."""
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(int(number)), *command]


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Makes the kernel send this process the signal when its parent ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


def _begin(parent: int, number: int, command: Sequence[str]) -> None:
    die_with_parent(number)
    if os.getppid() != parent:  # it has ended before it could be watched
        sys.exit(128 + number)
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # by this interpreter: the program would inherit it
        signal.signal(ignored, signal.SIG_DFL)
    os.execvp(command[0], list(command))


if __name__ == "__main__":
    _begin(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
