"""trackio: its local database, or the Space or server that the environment names."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import trackio

from fastgrpo.track.tables import table_of
from fastgrpo.track.tracker import TrackedRun

PROJECT = "fastgrpo"


class TrackioTracker:
    """In the local database a resumed run is written anew: what is there of it may hold steps that are done once
    more. A remote curve is gone on with."""

    def start(self, run: TrackedRun) -> int:
        name = f"{run.name}-{run.id}"
        is_remote = any(os.environ.get(n) for n in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"))
        if not is_remote:
            _forget(name)
        self.run = trackio.init(
            project=PROJECT,
            name=name,
            config=dict(run.settings),
            resume="allow" if is_remote else "never",
            auto_log_cpu=False,
        )
        held = self.run._initial_last_step if is_remote else None  # not to be had otherwise
        return -1 if held is None else held

    def rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        columns, cells = table_of(rows)
        self.run.log({"rollouts": trackio.Table(columns=columns, data=cells)}, step=step)

    def log(self, step: int, metrics: Mapping[str, float], unix_s: float) -> None:
        self.run.log(dict(metrics), step=step)

    def close(self) -> None:
        self.run.finish()


def _forget(name: str) -> None:
    """Deletes this run, and nothing else, from the local database."""
    try:
        runs = list(trackio.Api().runs(PROJECT))
    except ValueError:  # there is no such project yet
        return
    for run in runs:
        if run.name == name:
            run.delete()
