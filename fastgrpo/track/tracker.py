"""What every tracker does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class TrackedRun:
    """The run that a tracker shows."""

    name: str
    id: str  # made once and kept in the run's folder: a resumed run has the same, an overwritten one another
    folder: Path
    settings: Mapping[str, str | int | float | bool]  # by their command-line names, and what else the run began with


class Tracker(Protocol):
    """A curve that grows by one step after the other.

    Every method may take its time or raise: it is called on a thread of a process of its own. A call that raised is
    made again. One that begins a curve anew gets all steps from the first one on; so does a tracker on this machine
    that is started again, whose curve is then exactly what the run has recorded.
    """

    def start(self, run: TrackedRun) -> int:
        """Opens the curve of this run. Returns the last step that it holds, -1 if it begins anew."""

    def rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds a table of responses; comes before ``log`` of the same step."""

    def log(self, step: int, metrics: Mapping[str, float], unix_s: float) -> None:
        """Adds a step. ``unix_s`` counts time of training alone: pauses and evaluations take none of it."""

    def close(self) -> None:
        """Returns once everything is where it belongs."""
