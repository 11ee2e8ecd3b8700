"""SIGTERM and Ctrl-C, noted and acted on between two steps."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any


class Interrupted(Exception):
    """A signal asked the evaluation to end; all that was drawn and judged is on disk."""


@contextlib.contextmanager
def interrupts_noted() -> Iterator[Callable[[], None]]:
    """Gives what raises Interrupted once a signal has come. A second Ctrl-C ends the process at once."""
    noted: list[int] = []
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, _: Any) -> None:
        if number == signal.SIGINT and signal.SIGINT in noted:
            raise KeyboardInterrupt
        noted.append(number)

    def check() -> None:
        if noted:
            raise Interrupted(f"stopped by {signal.Signals(noted[0]).name}; the same command goes on from here")

    for s in before:
        signal.signal(s, note)
    try:
        yield check
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
