"""One tracker's thread: it takes what a run has recorded at the tracker's own pace, and outlives its failures."""

import contextlib
import fcntl
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import IO

from fastgrpo.track.recorded import POLL_S, recorded_steps
from fastgrpo.track.tracker import TrackedRun, Tracker

TRIES = 3  # of one step; what fails that often is dropped, or the steps after it would never be seen
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 300.0
SILENCE_S = 60.0
ROLLOUTS_EVERY = 10  # steps; a table of each would be more than a tracker shows


class Feeder(threading.Thread):
    """Sends the steps of a run to a tracker. The queue is the run's own metrics.jsonl: it takes no memory, and a
    tracker that was down or is slow loses nothing as long as the run goes on."""

    def __init__(
        self,
        name: str,
        make: Callable[[], Tracker],
        run: TrackedRun,
        is_over: threading.Event,
        say: Callable[[str], None],
    ) -> None:
        super().__init__(name=f"tracker {name}", daemon=True)
        self.tracker_name, self.make, self.tracked, self.is_over, self.say = name, make, run, is_over, say
        self.sent = self.dropped = 0
        self.reached = -1  # the last step that was sent, dropped, or there already
        self.complaint = ""
        self.pause_s = FIRST_PAUSE_S
        self.calling_since: float | None = None

    @property
    def is_silent(self) -> bool:
        """Whether a call of the tracker has not returned for a long time."""
        since = self.calling_since
        return since is not None and time.monotonic() - since > SILENCE_S

    def complain(self, reason: str) -> None:
        """Says once that something is wrong with the tracker."""
        if not self.complaint:
            self.complaint = reason
            self.say(f"warning, tracker {self.tracker_name}: {reason}")

    def run(self) -> None:
        with only_one(self.tracked.folder / "track" / f"{self.tracker_name}.lock", self.is_over) as is_mine:
            if not is_mine:
                self.complain("another process sends this run to it")
                return
            try:
                self._feed()
            except (ValueError, OSError) as error:  # of what the run has recorded
                self.complain(f"{type(error).__name__}: {error}")

    def _feed(self) -> None:
        if not self._succeeds(self._start, itertools.count()):
            return
        for step in recorded_steps(self.tracked.folder, self.is_over):
            if step.number <= self.reached:
                continue
            if step.rows and (step.number == 1 or step.number % ROLLOUTS_EVERY == 0):
                self._succeeds(partial(self.tracker.rollouts, step.number, step.rows), range(TRIES))
            if self._succeeds(partial(self.tracker.log, step.number, step.metrics, step.unix_s), range(TRIES)):
                self.sent += 1
            else:
                self.dropped += 1
            self.reached = step.number
        self._succeeds(self.tracker.close, range(1))

    def _start(self) -> None:
        self.tracker = self.make()
        self.reached = self.tracker.start(self.tracked)

    def _succeeds(self, action: Callable[[], None], tries: Iterable[int]) -> bool:
        """Whether one of the tries did not raise. Pauses between them grow until one succeeds; at the run's end there
        is one more try and no pause."""
        for _ in tries:
            is_last_try = self.is_over.is_set()
            self.calling_since = time.monotonic()
            try:
                action()
            except (Exception, SystemExit) as error:  # whatever the library raises
                self.complain(f"{type(error).__name__}: {error}")
            else:
                self.pause_s = FIRST_PAUSE_S
                return True
            finally:
                self.calling_since = None
            if is_last_try:
                break
            self.is_over.wait(self.pause_s)
            self.pause_s = min(2 * self.pause_s, LONGEST_PAUSE_S)
        return False


@contextlib.contextmanager
def only_one(path: Path, is_over: threading.Event) -> Iterator[bool]:
    """Whether this process alone holds the file; waits for one that a killed run has left behind."""
    with path.open("w") as file:
        is_last_try = False
        while not (is_mine := _is_locked(file)) and not is_last_try:
            is_last_try = is_over.wait(POLL_S)
        yield is_mine


def _is_locked(file: IO[str]) -> bool:
    """Whether this process could lock the file, which lasts until it closes the file or ends."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
