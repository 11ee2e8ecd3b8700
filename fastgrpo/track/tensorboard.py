"""TensorBoard: event files in RUN/tensorboard."""

import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from fastgrpo.track.tables import table_of
from fastgrpo.track.tracker import TrackedRun


class TensorBoardTracker:
    """Writes the whole curve anew when a run goes on: a file of a killed run holds steps that are done once more."""

    def start(self, run: TrackedRun) -> int:
        folder = run.folder / "tensorboard"
        shutil.rmtree(folder, ignore_errors=True)
        self.writer = EventFileWriter(str(folder))
        # A TensorBoard that is open shows nothing any more of the files that were there.
        self.writer.add_event(Event(wall_time=time.time(), step=0, session_log=SessionLog(status=SessionLog.START)))
        self._add(0, time.time(), hparams_pb(dict(run.settings), trial_id=run.id))
        settings = _markdown(["setting", "value"], [[name, value] for name, value in run.settings.items()])
        self._add(0, time.time(), text_pb("settings", settings))
        return -1

    def rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self._add(step, time.time(), text_pb("rollouts", _markdown(*table_of(rows))))

    def log(self, step: int, metrics: Mapping[str, float], unix_s: float) -> None:
        values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._add(step, unix_s, Summary(value=values))
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()

    def _add(self, step: int, unix_s: float, summary: Any) -> None:
        self.writer.add_event(Event(wall_time=unix_s, step=step, summary=summary))


def _markdown(columns: Sequence[str], cells: Sequence[Sequence[Any]]) -> str:
    def line(texts: Sequence[Any]) -> str:
        return "| " + " | ".join(str(t).replace("|", "\\|").replace("\n", "<br>") for t in texts) + " |"

    return "\n".join([line(columns), line(["---"] * len(columns)), *map(line, cells)])
