"""The folder of an evaluation: its files, and rows that are safe when the process is killed."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fastgrpo.evaluation.plan import Plan, Planned, differences
from fastgrpo.evaluation.records import read_generations, read_rows
from fastgrpo.json_lines import read_json, write_json
from fastgrpo.ranks.lock import FolderLock

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
        before = self._facts()
        if not self._has_drawn():
            return  # it drew nothing: the user may have corrected a model or a setting
        different = differences(before, facts) or [
            f"{b.name}: its problems or answers are others" for b in plan.benchmarks if self._has_others(b)
        ]
        if different:
            raise ValueError(
                f"{self.path} holds another evaluation ({'; '.join(different)}): give this one another --name, or "
                f"--overwrite that one"
            )

    def require_same(self, facts: dict[str, Any]) -> None:
        """Raises ValueError if a rank would draw something else than the first process has written down."""
        if different := differences(self._facts(), facts):
            raise ValueError(f"it would draw something else than {self.about} says: {'; '.join(different)}")

    def note_server(self, vllm: str, dtype: str) -> None:
        """Writes into the record which vLLM drew, and in which dtype."""
        versions: set[str] = {vllm, *self._servers().get("servers", {}).get("vllm", [])}
        write_json(self.about, {**self._facts(), "servers": {"vllm": sorted(versions), "dtype": dtype}})

    def dtype_of_servers(self) -> str:
        """The dtype in which servers have drawn; empty if none have yet."""
        return str(self._servers().get("servers", {}).get("dtype", ""))

    def _servers(self) -> dict[str, Any]:
        """What the record has of servers, under its name there."""
        return {k: v for k, v in self._facts().items() if k == "servers"} if self.about.exists() else {}

    def _has_drawn(self) -> bool:
        return any(path.stat().st_size for path in (self.path / "generations").glob("*.jsonl"))

    def _facts(self) -> dict[str, Any]:
        try:
            facts = read_json(self.about)
            benchmarks = facts.get("benchmarks", {})
            if not isinstance(benchmarks, dict) or not all(isinstance(b, dict) for b in benchmarks.values()):
                raise ValueError(f"{self.about} cannot be read (its benchmarks are no objects)")
        except ValueError as error:
            raise ValueError(f"{error}: --overwrite the evaluation, or mend the file") from error
        return facts

    def _has_others(self, planned: Planned) -> bool:
        try:
            there = read_rows(self.problems(planned.name))
        except ValueError:
            return True  # as if it held others: it cannot be said which
        return bool(there) and there != [asdict(p) for p in planned.benchmark.problems]

    def lock(self) -> FolderLock:
        """What an evaluation holds while it writes into the folder."""
        return FolderLock(self.path, print)

    def begin(self, facts: dict[str, Any], plan: Plan, overwrite: bool) -> None:
        """Makes the folder this evaluation's. What it already holds of this evaluation stays, unless ``overwrite``."""
        if overwrite:
            self._clear()
        self.path.mkdir(parents=True, exist_ok=True)
        servers = self._servers() if self._has_drawn() else {}
        write_json(self.about, {**facts, **servers})
        for planned in plan.benchmarks:
            target = self.problems(planned.name)
            partial = target.with_name(f".{target.name}.partial")
            partial.unlink(missing_ok=True)
            with RowFile(partial) as file:
                file.write(asdict(p) for p in planned.benchmark.problems)
            partial.replace(target)

    def _clear(self) -> None:
        """Responses go last: while there are some, an evaluation that asks for others is refused. Of a link
        nothing goes but itself."""
        for name in ("results.json", "results.md", "report.html", "behaviours.json", "behaviours.jsonl"):
            (self.path / name).unlink(missing_ok=True)
        for part in (self.path / name for name in ("verdicts", "problems", "generations")):
            if part.is_symlink():
                part.unlink()
            elif part.exists():
                shutil.rmtree(part)

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
