"""The folder of a run: what it holds, and whether a new run may use it."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastgrpo import __version__
from fastgrpo.config import Config, differences, flatten
from fastgrpo.json_lines import JsonLines, write_json

FORMAT = 4
"""Version of what a run leaves for its continuation: the settings in run.json and what checkpoints hold.

To be raised when a run that an earlier version started could not go on: a setting that is not free on resume was added,
renamed, removed or given another meaning, or the state in a checkpoint changed. A folder without a number is older
than 2."""


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

    def check(self, config: Config, algorithm: dict[str, Any]) -> None:
        """Raises ValueError if the folder holds a run that this one neither continues nor may overwrite."""
        if config.overwrite and not config.resume:
            self._require_a_run()
        elif self.metrics.read() or self.checkpoints.exists():
            self._require_same(config, algorithm)

    def begin(self, config: Config, facts: dict[str, Any]) -> None:
        """Makes the folder this run's. An old run that is to be overwritten goes now that the new one can start."""
        if config.overwrite and not config.resume:
            self._clear()
        write_json(self.facts, {"format": FORMAT, "fastgrpo": __version__, **facts, "config": self._settings(config)})

    def _settings(self, config: Config) -> dict[str, Any]:
        """The settings as a recipe writes them, with ``{run_dir}`` for this folder: a run may be moved."""
        return {
            name: value.replace(config.run_dir, "{run_dir}") if isinstance(value, str) and "." in name else value
            for name, value in flatten(config).items()
        }

    def _require_same(self, config: Config, algorithm: dict[str, Any]) -> None:
        try:
            facts = dict(json.loads(self.facts.read_text()))
            before = facts["config"]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{self.facts} cannot be read ({error}): --overwrite the run, or mend the file") from error
        self._require_format(facts)
        differing = differences(before, self._settings(config))
        then, now = facts.get("algorithm", algorithm), json.loads(json.dumps(algorithm))
        differing += [f"the recipe's {n}: {then.get(n)} there, {now[n]} now" for n in now if then.get(n) != now[n]]
        if differing:
            raise ValueError(
                f"{self.path} holds a run with another configuration ({'; '.join(differing)}): give this one another "
                f"--name, or --overwrite that one, or --resume it with its own settings"
            )
        if not config.resume and self.metrics.read():
            raise ValueError(f"{self.path} holds a run already: --resume it, --overwrite it, or give another --name")

    def _require_format(self, facts: dict[str, Any]) -> None:
        found, version = facts.get("format"), facts.get("fastgrpo")
        if found != FORMAT:
            raise ValueError(
                f"{self.path} holds a run {'without a format number' if found is None else f'of format {found}'}, and "
                f"fastgrpo {__version__} can continue format {FORMAT} only: finish it with "
                f"{f'fastgrpo {version}' if version else 'the version of fastgrpo'} that started it, give this run "
                f"another --name, or start anew with --overwrite (without --resume)"
            )

    def _held(self) -> list[Path]:
        return [path for path in self.path.iterdir() if path != self.base] if self.path.exists() else []

    def _require_a_run(self) -> None:
        if self._held() and not self.facts.exists():
            raise ValueError(f"{self.path} holds files and no run (no {self.facts.name}): --overwrite leaves it alone")

    def _clear(self) -> None:
        for path in self._held():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
