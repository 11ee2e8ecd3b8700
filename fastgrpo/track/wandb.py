"""W&B: offline files in RUN/wandb, or the server where the environment names it."""

import os
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import wandb

from fastgrpo.track.tables import table_of
from fastgrpo.track.tracker import TrackedRun

PROJECT = "fastgrpo"


class WandbTracker:
    """Online, a resumed run goes on with the curve that the server holds. Offline its files are written anew: two
    folders of one run would be two halves of a curve, with the killed run's last steps in both."""

    def start(self, run: TrackedRun) -> int:
        mode = mode_of(os.environ)
        if mode == "offline":
            for left in (run.folder / "wandb").glob(f"offline-run-*-{run.id}"):
                shutil.rmtree(left)
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            id=run.id,
            resume="allow" if mode == "online" else None,
            dir=run.folder,
            config=dict(run.settings),
            mode=mode,
            settings=wandb.Settings(console="off", disable_code=True),
        )
        return self.run.starting_step - 1 if self.run.resumed else -1

    def rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        columns, cells = table_of(rows)
        self.run.log({"rollouts": wandb.Table(columns=columns, data=cells, allow_mixed_types=True)}, step=step)

    def log(self, step: int, metrics: Mapping[str, float], unix_s: float) -> None:
        self.run.log(dict(metrics), step=step, commit=True)

    def close(self) -> None:
        self.run.finish()


def mode_of(environment: Mapping[str, str]) -> str:
    """What WANDB_MODE says; without it online where there is a WANDB_API_KEY, else offline."""
    return environment.get("WANDB_MODE") or ("online" if environment.get("WANDB_API_KEY") else "offline")
