"""SIGTERM and Ctrl-C, noted and acted on between two steps."""

import contextlib
import signal
import time
from collections.abc import Iterator, Sequence
from types import FrameType

EXIT_INTERRUPTED = 75
"""Exit code of a command that a signal ended after it saved its state: the same command can go on."""

ANSWER_S = 1.0
"""Launchers answer a Ctrl-C with signals of their own within this time; a later Ctrl-C is a person's."""


class Interrupted(Exception):
    """A signal asked the work to end, and its state is saved."""


@contextlib.contextmanager
def signals_noted() -> Iterator[list[signal.Signals]]:
    """Gives a list to which every SIGTERM and Ctrl-C of the block is added; the caller looks at it after each step.

    A Ctrl-C more than 1 s after the first signal raises KeyboardInterrupt at once. The handlers that were there before
    are put back at the end.
    """
    noted: list[signal.Signals] = []
    first_s = 0.0
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, _: FrameType | None) -> None:
        nonlocal first_s
        if not noted:
            first_s = time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - first_s > ANSWER_S:
            raise KeyboardInterrupt
        noted.append(signal.Signals(number))

    for s in before:
        signal.signal(s, note)
    try:
        yield noted
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def stop_if_noted(noted: Sequence[signal.Signals]) -> None:
    """Raises Interrupted if a signal was noted, for a command whose state is always on disk."""
    if noted:
        raise Interrupted(f"stopped by {noted[0].name}; the same command goes on from here")
