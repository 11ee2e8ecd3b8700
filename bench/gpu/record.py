"""The record of the steps and their answers: a kill loses one step, and a later call goes on where this one ended."""

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
"""The three files that are copied to an `--out` folder."""


@dataclass(frozen=True)
class Answer:
    """The end of a step."""

    step: str
    state: State
    seconds: float = 0.0
    why: str = ""  # the reason if it failed or was skipped
    failed_rows: Mapping[str, str] = field(default_factory=dict)  # of a subject: row -> reason


class Record:
    """A folder with the log, one line of JSON for every answer, and the subjects' results.

    It may be written to only inside `held`. Raises ValueError if ``out`` is this folder or its results.
    """

    def __init__(self, folder: Path, out: Path | None) -> None:
        self.folder, self.out = folder, out
        if out is not None and out.resolve() in (folder.resolve(), self.results.resolve()):
            raise ValueError(f"--out {out} gets copies of what is in --folder {folder}: it must lie elsewhere")
        self.results.mkdir(parents=True, exist_ok=True)
        self.answers = self._read()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """A block in which only this call uses the folder.

        Raises ValueError if another call uses it, or if ``out`` cannot be written to.
        """
        with (self.folder / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"another `bench gpu` is at work in {self.folder}: wait, or give --folder") from None
            self.answers = self._read()  # another call may have added some
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
        """The last answer of every step. Other lines, such as one that a kill has cut off, do not count."""
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
        is_torn = path.exists() and not path.read_bytes().endswith(b"\n")  # a line that a kill has cut off gets an end
        with path.open("a", encoding="utf-8") as file:
            file.write("\n" * is_torn + line + "\n")
        self.hand_out()

    def to_do(self, chosen: Sequence[Step]) -> list[Step]:
        """The steps without an answer, in order, and then those that failed: their reason may be gone."""
        new = [s for s in chosen if s.name not in self.answers or self.answers[s.name].state == "skipped"]
        failed = [s for s in chosen if s.name in self.answers and self.answers[s.name].state == "failed"]
        return new + failed

    def hand_out(self) -> None:
        """Updates the copy in ``out``. If that fails now, it is tried again after the next step."""
        try:
            self._copy_out()
        except OSError as error:
            print(f"bench gpu: {self.out} could not be written to: {error}", file=sys.stderr)

    def _copy_out(self) -> None:
        """Copies the files. Each of them is complete at any time."""
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
