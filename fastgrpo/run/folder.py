"""The folder of a run: what it holds, and whether a new run may use it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastgrpo import __version__
from fastgrpo.command_line.system_errors import in_words
from fastgrpo.config import Config, differences, expanded_settings, flatten
from fastgrpo.json_lines import JsonLines, read_json, write_json
from fastgrpo.ranks.lock import LOCK, FolderLock
from fastgrpo.run.checkpoint import remove
from fastgrpo.run.same_data import DataFacts, other_data

FORMAT = 4
"""Version of what a run leaves for its continuation: the settings in run.json and what checkpoints hold.

To be raised when a run that an earlier version started could not go on: a setting that is not free on resume was added,
renamed, removed or given another meaning, or the state in a checkpoint changed. A folder without a number is older
than 2."""

FACTS, CLEARING = "run.json", ".clearing"
OF_EVERY_RUN = {LOCK, FACTS, CLEARING, "base", "engines"}
"""What no ``--overwrite`` removes: the recipe's base, the logs of engines that are running already, and what says that
the folder is a run's."""


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
        return self.path / FACTS

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    def lock(self, say: Callable[[str], None]) -> FolderLock:
        """What a run holds from before it looks at the folder until its last rank has ended."""
        return FolderLock(self.path, say)

    def check(self, config: Config, algorithm: dict[str, Any]) -> None:
        """Raises ValueError if the folder holds a run that this one neither continues nor may overwrite."""
        if config.overwrite and not config.resume:
            self._require_a_run()
        elif self._is_half_cleared:
            raise ValueError(f"{self.path} holds what an unfinished --overwrite left: --overwrite it once more")
        elif self._has_steps:
            self._require_same(config, algorithm)

    def check_data(self, config: Config, data: DataFacts) -> None:
        """Raises ValueError if the folder holds a run on other prompts, and this one goes on with it."""
        if not (config.resume and self._has_steps):
            return
        there = self._read_facts().get("data")
        if isinstance(there, dict) and (differing := other_data(there, data)):  # an older run has not noted it
            raise ValueError(
                f"{self.path} holds a run on other data ({differing}): give back the data that it began with, or start "
                f"anew with --overwrite (without --resume) or under another --name"
            )

    def begin(self, config: Config, facts: dict[str, Any], say: Callable[[str], None]) -> None:
        """Makes the folder this run's. An old run that is to be overwritten goes now that the new one can start."""
        if config.overwrite and not config.resume:
            self._clear(say)
        write_json(self.facts, {"format": FORMAT, "fastgrpo": __version__, **facts, "config": self._settings(config)})
        (self.path / CLEARING).unlink(missing_ok=True)

    def _settings(self, config: Config) -> dict[str, Any]:
        """The settings as a recipe writes them, with ``{run_dir}`` for this folder: a run may be moved."""
        return {
            name: value.replace(config.run_dir, "{run_dir}") if isinstance(value, str) and "." in name else value
            for name, value in flatten(config).items()
        }

    @property
    def _has_steps(self) -> bool:
        """Whether a run has left something here to go on from. What can be read of it is not asked."""
        # Rollouts come before their step's metrics: beside a run.json they alone are no step yet.
        lines = (self.metrics.path, *(() if self.facts.exists() else (self.rollouts.path,)))
        return any(p.exists() and p.stat().st_size > 0 for p in lines) or any(self.checkpoints.glob("step_*"))

    @property
    def _is_half_cleared(self) -> bool:
        return (self.path / CLEARING).exists()

    def _read_facts(self) -> dict[str, Any]:
        if not self.facts.exists():
            raise ValueError(
                f"{self.path} holds the steps of a run and no {FACTS}, which says what run it was: put that file back, "
                f"remove what is left of the run, or give this one another --name"
            )
        try:
            facts = read_json(self.facts)
            if not (isinstance(facts.get("config"), dict) and isinstance(facts.get("algorithm", {}), dict)):
                raise ValueError(f"{self.facts} cannot be read (its config and its algorithm must be objects)")
        except ValueError as error:
            raise ValueError(f"{error}: --overwrite the run (without --resume), or mend the file") from error
        return facts

    def _require_same(self, config: Config, algorithm: dict[str, Any]) -> None:
        facts = self._read_facts()
        self._require_format(facts)
        differing = differences(expanded_settings(facts["config"]), self._settings(config))
        then, now = facts.get("algorithm", algorithm), json.loads(json.dumps(algorithm))
        differing += [f"the recipe's {n}: {then.get(n)} there, {now[n]} now" for n in now if then.get(n) != now[n]]
        if differing:
            raise ValueError(
                f"{self.path} holds a run with another configuration ({'; '.join(differing)}): give this one another "
                f"--name, or --overwrite that one, or --resume it with its own settings"
            )
        if not config.resume:
            raise ValueError(f"{self.path} holds a run already: --resume it, --overwrite it, or give another --name")
        self._require_readable()

    def _require_readable(self) -> None:
        for lines in (self.metrics, self.rollouts):
            try:
                for _ in lines:
                    pass
            except ValueError as error:
                raise ValueError(
                    f"{error}. Remove that line and --resume, or --overwrite the run (without --resume)"
                ) from error

    def _require_format(self, facts: dict[str, Any]) -> None:
        found, version = facts.get("format"), facts.get("fastgrpo")
        if found != FORMAT:
            raise ValueError(
                f"{self.path} holds a run {'without a format number' if found is None else f'of format {found}'}, and "
                f"fastgrpo {__version__} can continue format {FORMAT} only: finish it with "
                f"{f'fastgrpo {version}' if version else 'the version of fastgrpo'} that started it, give this run "
                f"another --name, or start anew with --overwrite (without --resume)"
            )

    def _require_a_run(self) -> None:
        """A run is what has a run.json, whatever is in it. Hidden files are no run's, and stay."""
        found = [p.name for p in self.path.iterdir() if p.name not in OF_EVERY_RUN and not p.name.startswith(".")]
        if found and not self.facts.exists():
            raise ValueError(
                f"{self.path} holds files and no run (no {FACTS}; there is {min(found)}): --overwrite leaves it alone. "
                f"Give another --name, or remove the files yourself"
            )

    def _clear(self, say: Callable[[str], None]) -> None:
        """Removes the run that was here, and nothing that its links lead to. What fails can be done once more: the mark
        and run.json stay until the new run.json takes their place."""
        old = [p for p in self.path.iterdir() if p.name not in OF_EVERY_RUN and not p.name.startswith(".")]
        if old:
            (self.path / CLEARING).touch()
        for path in old:
            if path.is_symlink():
                say(f"{path} was a link to {path.readlink()}, where everything stays as it is")
            try:
                remove(path)
            except OSError as error:
                raise ValueError(
                    f"--overwrite cannot remove the old run: {in_words(error)}; then --overwrite once more"
                ) from error
