"""The ``preexec_fn`` of child processes: what they do before their program starts."""

import ctypes
import signal

PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def die_with_parent() -> None:
    """Makes the kernel kill this process when its parent ends, even if the parent is killed itself.

    An orphan would hold its GPU, or write into files that another process goes on with.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
