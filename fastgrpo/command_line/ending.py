"""The signals by which a terminal or a scheduler announces the end, and what a process does about them.

A signal that was ignored when the process started stays ignored, as ``nohup`` means it. SIGQUIT is not announced:
whoever sends it wants the process to end at once.
"""

import contextlib
import os
import signal
from pathlib import Path
from types import FrameType
from typing import Any

from fastgrpo.command_line.exit_codes import of_signal

ANNOUNCING = (
    signal.SIGTERM,  # Slurm, PBS, Kubernetes, systemd, kill
    signal.SIGINT,  # Ctrl-C, LSF
    signal.SIGHUP,  # a closed terminal, a lost ssh
    signal.SIGUSR1,  # SGE, and what Slurm's --signal is usually given
    signal.SIGUSR2,  # LSF and SGE, ahead of the end
    signal.SIGXCPU,  # ulimit -t and queues that limit it; repeated every second
    *([signal.SIGPWR] if hasattr(signal, "SIGPWR") else []),  # the power fails
)
OF_ANYBODY = (signal.SIGUSR1, signal.SIGUSR2)
"""A recipe or a library may have given these a meaning of its own, which they keep."""

STDERR = 2  # sys.stderr may wait for a lock


_answers: dict[int, Any] = {}
"""The handlers that were set here."""


def announcing() -> tuple[signal.Signals, ...]:
    """Those that announce the end of this process."""
    return tuple(s for s in ANNOUNCING if _announces(s))


def _announces(number: signal.Signals) -> bool:
    handler = signal.getsignal(number)
    if handler is signal.SIG_IGN:
        return False
    if number not in OF_ANYBODY or (number in _answers and handler == _answers[number]):
        return True
    return handler == signal.SIG_DFL and not _is_caught(number)


def _is_caught(number: int) -> bool:
    """Whether the system knows of a handler; Python knows of none that is set in C, as by ``faulthandler.register``."""
    try:
        status = Path("/proc/self/status").read_text()
        caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
    except (OSError, StopIteration, IndexError):  # not Linux
        return False
    return bool(int(caught, 16) >> (number - 1) & 1)


def handle(handler: Any) -> dict[signal.Signals, Any]:
    """Makes this the answer to every signal that announces the end. Returns the answers before, for `put_back`."""
    before = {number: signal.getsignal(number) for number in announcing()}
    put_back(dict.fromkeys(before, handler))
    return before


def put_back(handlers: dict[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        _answers[number] = handler
        signal.signal(number, handler)


def end_in_a_line(number: int, _: FrameType | None) -> None:
    """A handler that ends the process with one line and 128 + the signal, wherever it is.

    An exception would show a traceback, or be caught by code that is not ours.
    """
    tell(f"ended by {signal.Signals(number).name}; what is saved is whole")
    os._exit(of_signal(number))


def do_nothing(number: int, _: FrameType | None) -> None:
    """A handler for processes that serve a run, which tells them when it is over.

    A scheduler signals all processes of a job, and the run still needs them. Not SIG_IGN, which the programs that they
    start would inherit.
    """


def tell(text: str) -> None:
    """Says it on standard error, also from a handler of signals; whoever cannot hear it does not matter."""
    with contextlib.suppress(OSError):
        os.write(STDERR, f"fastgrpo: {text}\n".encode())
