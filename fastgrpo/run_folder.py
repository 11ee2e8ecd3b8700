"""The folder of a run: what it holds, and whether a new run may use it."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastgrpo.config import Config, differences, flatten
from fastgrpo.metrics import JsonLines, write_json


@dataclass(frozen=True)
class RunFolder:
    """``base`` is what a recipe prepared, and outlives ``--overwrite``; all the rest belongs to one run."""

    path: Path

    @property
    def base(self) -> Path:
        return self.path / "base"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> JsonLines:
        return JsonLines(self.path / "metrics.jsonl")

    @property
    def rollouts(self) -> JsonLines:
        return JsonLines(self.path / "rollouts.jsonl")

    @property
    def facts(self) -> Path:
        return self.path / "run.json"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    def open(self, config: Config, facts: dict[str, Any]) -> None:
        """Claims the folder for this configuration. Raises ValueError if it holds a run that this does not continue."""
        if config.overwrite and not config.resume:
            self._clear()
        if self.metrics.read() or self.checkpoints.exists():
            self._require_same(config)
        write_json(self.facts, {**facts, "config": flatten(config)})

    def _require_same(self, config: Config) -> None:
        differing = differences(json.loads(self.facts.read_text())["config"], flatten(config))
        if differing:
            raise ValueError(
                f"{self.path} holds a run with another configuration ({'; '.join(differing)}): give this one another "
                f"--name, or --overwrite that one, or --resume it with its own settings"
            )
        if not config.resume and self.metrics.read():
            raise ValueError(f"{self.path} holds a run already: --resume it, --overwrite it, or give another --name")

    def _clear(self) -> None:
        """Removes a run, and nothing that is not one."""
        held = [path for path in self.path.iterdir() if path != self.base] if self.path.exists() else []
        if held and not self.facts.exists():
            raise ValueError(f"{self.path} holds files and no run (no {self.facts.name}): --overwrite leaves it alone")
        for path in held:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
