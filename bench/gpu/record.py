"""What has been asked and answered: a kill costs one step, and a later call goes on where this one ended."""

import contextlib
import fcntl
import json
import shutil
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from bench.gpu.steps import Step

State = Literal["passed", "failed", "skipped"]
LOG, RECORD, RESULTS = "gpu_log.txt", "gpu_record.jsonl", "gpu_results.tar.gz"
"""The three files that an `--out` folder gets."""


@dataclass(frozen=True)
class Answer:
    """How a step ended."""

    step: str
    state: State
    seconds: float = 0.0
    why: str = ""  # it failed or was skipped
    failed_rows: Mapping[str, str] = field(default_factory=dict)  # of a subject: row -> reason


class Record:
    """A folder with the log, one line of JSON for every answer, and the subjects' results.

    Only within `held` may it be written to. Raises ValueError if ``out`` is that folder or its results.
    """

    def __init__(self, folder: Path, out: Path | None) -> None:
        self.folder, self.out = folder, out
        if out is not None and out.resolve() in (folder.resolve(), self.results.resolve()):
            raise ValueError(f"--out {out} gets copies of what is in --folder {folder}: it must lie elsewhere")
        self.results.mkdir(parents=True, exist_ok=True)
        self.answers = self._read()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Nobody else's for the length of the block. Raises ValueError if another call works in the folder, or ``out``
        cannot be written to."""
        with (self.folder / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"another `bench gpu` is at work in {self.folder}: wait, or give --folder") from None
            self.answers = self._read()  # with those of a call that has ended since
            try:
                self._copy_out()
            except OSError as error:
                raise ValueError(f"--out {self.out} cannot be written to: {error}") from error
            yield

    @property
    def log(self) -> Path:
        return self.folder / LOG

    @property
    def results(self) -> Path:
        return self.folder / "results"

    def _read(self) -> dict[str, Answer]:
        """The last answer of every step; a line that is none, as one that a kill tore, does not count."""
        path = self.folder / RECORD
        found: dict[str, Answer] = {}
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        for line in text.splitlines():
            with contextlib.suppress(ValueError, TypeError, KeyError):
                entry = json.loads(line)
                found[entry["step"]] = Answer(**{key: entry[key] for key in entry if key != "at"})
        return found

    def add(self, answer: Answer) -> None:
        self.answers[answer.step] = answer
        line = json.dumps(asdict(answer) | {"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())})
        path = self.folder / RECORD
        is_torn = path.exists() and not path.read_bytes().endswith(b"\n")  # what a kill left: a line to itself
        with path.open("a", encoding="utf-8") as file:
            file.write("\n" * is_torn + line + "\n")
        self.hand_out()

    def to_do(self, chosen: Sequence[Step]) -> list[Step]:
        """What has no answer yet, in order, and then what failed: that may have been mended."""
        new = [s for s in chosen if s.name not in self.answers or self.answers[s.name].state == "skipped"]
        failed = [s for s in chosen if s.name in self.answers and self.answers[s.name].state == "failed"]
        return new + failed

    def hand_out(self) -> None:
        """Brings the folder that is carried home up to date. What cannot be written now is tried after the next step:
        it is a copy."""
        try:
            self._copy_out()
        except OSError as error:
            print(f"bench gpu: {self.out} could not be written to: {error}", file=sys.stderr)

    def _copy_out(self) -> None:
        """Each file is whole at any moment."""
        if self.out is None:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        for name in (LOG, RECORD):
            if (self.folder / name).exists():
                partial = self.out / f"{name}.part"
                shutil.copyfile(self.folder / name, partial)
                partial.replace(self.out / name)
        partial = self.out / f"{RESULTS}.part"
        with tarfile.open(partial, "w:gz") as archive:
            archive.add(self.results, arcname=".")
        partial.replace(self.out / RESULTS)
