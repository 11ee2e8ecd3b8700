"""The folder of an evaluation: its files, and rows that are safe when the process is killed."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fastgrpo.evaluation.plan import Plan, Planned, differences
from fastgrpo.evaluation.records import read_generations, read_rows
from fastgrpo.json_lines import write_json

Key = tuple[int, int]  # problem, sample
BLOCK_BYTES = 1 << 16


class RowFile:
    """Appends rows of JSON to a file. The operating system has each row when ``write`` returns."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_torn_line(path)
        self._file = path.open("ab", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._file.close()

    def write(self, rows: Iterable[dict[str, Any]]) -> None:
        """Raises OSError if the disk is full. The part of a row that was written is dropped at the next start."""
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        left = memoryview(text.encode("utf-8", "surrogatepass"))
        while left:
            left = left[self._file.write(left) :]


def _drop_torn_line(path: Path) -> None:
    if not path.exists():
        return
    with path.open("rb") as file:
        size = end = file.seek(0, os.SEEK_END)
        whole = 0
        while end and not whole:
            start = max(0, end - BLOCK_BYTES)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            whole, end = (start + newline + 1, end) if newline >= 0 else (0, start)
    if whole < size:
        os.truncate(path, whole)


@dataclass(frozen=True)
class EvaluationFolder:
    """Paths of an evaluation's files, and what may be done with the folder."""

    path: Path

    @property
    def about(self) -> Path:
        return self.path / "evaluation.json"

    def problems(self, name: str) -> Path:
        return self.path / "problems" / f"{name}.jsonl"

    def generations(self, name: str, rank: int | None = None) -> Path:
        """The file of a rank, or of the only process: two processes never write into one file."""
        return self.path / "generations" / (f"{name}.jsonl" if rank is None else f"{name}.rank{rank}.jsonl")

    def verdicts(self, name: str) -> Path:
        return self.path / "verdicts" / f"{name}.jsonl"

    def check(self, facts: dict[str, Any], plan: Plan, overwrite: bool) -> None:
        """Raises ValueError if the folder holds something that this evaluation can neither continue nor overwrite."""
        if not self.about.exists():
            left = list(self.path.iterdir()) if self.path.exists() else []
            if any(not p.name.startswith(".") for p in left):  # a lock or an unfinished file does not count
                raise ValueError(
                    f"{self.path} holds files and no evaluation (no {self.about.name}): give another --name"
                )
            return
        if overwrite:
            return
        try:
            before = dict(json.loads(self.about.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{self.about} cannot be read ({error}): --overwrite it, or mend the file") from error
        if not any((self.path / "generations").glob("*.jsonl")):
            return  # it drew nothing: the user may have corrected a model or a setting
        different = differences(before, facts) or [
            f"{b.name}: its problems or answers are others" for b in plan.benchmarks if self._has_others(b)
        ]
        if different:
            raise ValueError(
                f"{self.path} holds another evaluation ({'; '.join(different)}): give this one another --name, or "
                f"--overwrite that one"
            )

    def _has_others(self, planned: Planned) -> bool:
        there = read_rows(self.problems(planned.name))
        return bool(there) and there != [asdict(p) for p in planned.benchmark.problems]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Makes sure that this process alone works in the folder. Raises ValueError if another one does."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(f"another process is at work in {self.path}: wait for it, or give a --name") from error
            yield

    def begin(self, facts: dict[str, Any], plan: Plan, overwrite: bool) -> None:
        """Makes the folder this evaluation's. What it already holds of this evaluation stays, unless ``overwrite``."""
        if overwrite:
            self._clear()
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.about, facts)
        for planned in plan.benchmarks:
            target = self.problems(planned.name)
            partial = target.with_name(f".{target.name}.partial")
            partial.unlink(missing_ok=True)
            with RowFile(partial) as file:
                file.write(asdict(p) for p in planned.benchmark.problems)
            partial.replace(target)

    def _clear(self) -> None:
        for part in ("problems", "generations", "verdicts"):
            if (self.path / part).exists():
                shutil.rmtree(self.path / part)
        for name in ("behaviours.jsonl", "behaviours.json", "results.json", "results.md", "report.html"):
            (self.path / name).unlink(missing_ok=True)

    def drawn(self, name: str) -> dict[Key, dict[str, Any]]:
        """The row of each response that a benchmark has."""
        return {key_of(row): row for row in read_generations(self.path, name)}

    def judged(self, name: str) -> dict[Key, dict[str, Any]]:
        """The last verdict of each response."""
        return {key_of(row): row for row in read_rows(self.verdicts(name))}

    def missing(self, plan: Plan) -> Iterator[tuple[Planned, list[Key]]]:
        """Each benchmark with the responses that are not drawn yet."""
        for planned in plan.benchmarks:
            drawn = self.drawn(planned.name)
            yield planned, [key for key in planned.keys if key not in drawn]


def key_of(row: dict[str, Any]) -> Key:
    return row["problem"], row["sample"]
