"""A benchmark's name -> where its problems are, and all of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

from fastgrpo.data.read import FORMATS, find_files
from fastgrpo.data.schemas import parse, read_problem_rows, schema_of
from fastgrpo.evaluation.records import ProblemRow
from fastgrpo.evaluation.suites import BENCHMARKS
from fastgrpo.types import Prompt


@dataclass(frozen=True)
class Benchmark:
    name: str
    source: str  # file, folder or hub data set that it was read from
    problems: list[ProblemRow]


def find_benchmark(name: str, data: str) -> tuple[str, str]:
    """(name, source) of a known benchmark, of a local file or folder, or of a hub data set owner/name[:path].

    A known benchmark is taken from the folder `data` (laid out as AIME24/test.parquet), or else from the hub. A file
    gives its own name to the benchmark, or its folder's name if the file is called test. Raises ValueError that says
    which file to get from where.
    """
    known = BENCHMARKS.get(name)
    if known is None:
        path = Path(name)
        if not path.exists() and "/" not in name:
            names = ", ".join(BENCHMARKS)
            raise ValueError(f"no benchmark {name!r}: give one of {names}, a {', '.join(FORMATS)} file or a hub id")
        return _short_name(name), name
    if data and (file := Path(data) / known.file).is_file():
        return name, str(file)
    if known.hub:
        return name, known.hub
    where = f"{Path(data) / known.file} does not exist" if data else "no --data folder was given"
    raise ValueError(
        f"{name} is not on the hub as its paper used it, and {where}: get {known.repository} from GitHub (for "
        f"JustRL's nine: git clone https://github.com/thunlp/JustRL, then --data JustRL/data)"
    )


def _short_name(source: str) -> str:
    """``base/held_out.jsonl`` -> held_out, ``AIME24/test.parquet`` -> AIME24, ``MathArena/aime_2025`` -> aime_2025"""
    owner_and_name, _, inside = source.partition(":")
    path = Path(owner_and_name if inside and not Path(source).exists() else source)
    if path.suffix in FORMATS:
        return path.parent.name if path.stem == "test" and path.parent.name else path.stem
    return path.name


def load_benchmark(name: str, source: str, limit: int = 0) -> Benchmark:
    """All problems, or the first `limit`, without the data set's instructions, and without a box around an answer.

    A repeated problem stays, unlike in training data: an average is over the rows of the file. Raises ValueError for a
    file that cannot be read and for a row without an answer.
    """
    problems = []
    for problem in islice(_problems(source), limit or None):
        if not problem.answer:
            raise ValueError(
                f"{source}, row {problem.row} has no answer: no response to it could be right. Take it out."
            )
        if problem.history:
            raise ValueError(
                f"{source}, row {problem.row} has messages before its question ({problem.history[0][0]}), and an "
                f"evaluation asks the question alone: take them out, or measure in a run, by --data.held_out."
            )
        problems.append(ProblemRow(problem.row, problem.text.strip(), problem.answer))
    if not problems:
        raise ValueError(f"{source} holds no problem")
    return Benchmark(name, source, problems)


def _problems(source: str) -> Iterator[Prompt]:
    numbers = count()
    for file in find_files(source):
        schema = None
        for row in read_problem_rows(file):
            schema = schema or schema_of(row.values, row.where)
            yield parse(row, next(numbers), schema, "")


def count_note(benchmark: Benchmark, limit: int) -> str:
    """A sentence about a known benchmark whose number of problems is not the published one; empty otherwise."""
    known = BENCHMARKS.get(benchmark.name)
    if known is None or limit or known.num_problems == len(benchmark.problems):
        return ""
    return (
        f"{benchmark.name} has {known.num_problems} problems in {known.repository}, and {len(benchmark.problems)} in "
        f"{benchmark.source}: not the published benchmark"
    )
