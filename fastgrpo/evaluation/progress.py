"""The progress of an evaluation, as its user sees it."""

import sys
import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fastgrpo.command_line.console import Page

LINES = 10
"""Lines that a stage prints where there is no terminal, at most."""
MIN_LINE_S = 2.0


class StageProgress:
    """Shows a bar in a terminal; elsewhere a plain line for each tenth. ``console``: instead of one of its own."""

    def __init__(
        self, stage: str, total: int, done: int = 0, quiet: bool = False, console: Console | None = None
    ) -> None:
        self.stage, self.total, self.done, self.first = stage, total, done, done
        self.started = self.last_line = time.perf_counter()
        self.console = console or Page(quiet=quiet, soft_wrap=True, highlight=False)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        is_live = sys.stdout.isatty() and not quiet
        self.bar = Progress(*columns, TimeRemainingColumn(), console=self.console) if is_live else None
        self.task = self.bar.add_task(stage, total=total, completed=done) if self.bar else None

    def __enter__(self) -> Self:
        if self.bar:
            self.bar.start()
        elif self.first:
            self.say(f"{self.stage}: {self.first} of {self.total} are there")
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)

    def advance(self, count: int = 1) -> None:
        if not count:
            return
        before, self.done = self.done, self.done + count
        if self.bar and self.task is not None:
            self.bar.update(self.task, completed=self.done)
        elif self.done * LINES // self.total > before * LINES // self.total:
            self._line(time.perf_counter())

    def _line(self, now: float) -> None:
        """Prints one line, without a rate if the stage is short: whole batches end at once there."""
        if self.done < self.total and now - self.last_line < MIN_LINE_S:
            return
        self.last_line, passed = now, now - self.started
        rate = f", {(self.done - self.first) / passed:.1f} a second" if passed > MIN_LINE_S else ""
        self.say(f"{self.stage}: {self.done} of {self.total}{rate}")
