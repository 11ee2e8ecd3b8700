"""Signals that announce the end, noted and acted on between two steps."""

import contextlib
import signal
import time
from collections.abc import Iterator, Sequence
from types import FrameType

from fastgrpo.command_line.ending import end_in_a_line, handle, put_back

ANSWER_S = 1.0
"""Launchers answer a Ctrl-C with signals of their own within this time; a later Ctrl-C is a person's."""


class Interrupted(Exception):
    """A signal asked the work to end, and its state is saved."""


class NotedSignals(list[signal.Signals]):
    """The signals that have come, the first one first."""

    first_s = 0.0  # time.monotonic

    def is_second_ctrl_c(self, number: int) -> bool:
        """Whether a person asks, once more, for the end: a Ctrl-C more than 1 s after the first signal."""
        return bool(self) and number == signal.SIGINT and time.monotonic() - self.first_s > ANSWER_S

    def note(self, number: int) -> None:
        self.first_s = self.first_s or time.monotonic()
        self.append(signal.Signals(number))


@contextlib.contextmanager
def signals_noted() -> Iterator[NotedSignals]:
    """Gives a list to which every signal of the block that announces the end is added; the caller looks at it after
    each step.

    A second Ctrl-C ends the process at once. The handlers that were there before are put back at the end, unless it is
    Interrupted: then the process is about to end with its state saved, which further signals must not change.
    """
    noted = NotedSignals()

    def answer(number: int, frame: FrameType | None) -> None:
        if noted.is_second_ctrl_c(number):
            end_in_a_line(number, frame)
        noted.note(number)

    before, is_saved = handle(answer), False
    try:
        yield noted
    except Interrupted:
        is_saved = True
        raise
    finally:
        if not is_saved:
            put_back(before)


def stop_if_noted(noted: Sequence[signal.Signals]) -> None:
    """Raises Interrupted if a signal was noted, for a command whose state is always on disk."""
    if noted:
        raise Interrupted(f"stopped by {noted[0].name}; the same command goes on from here")
