"""A source -> the problems in it, each once, with the instruction that a run gives."""

from collections.abc import Iterator
from dataclasses import dataclass

from fastgrpo.data.read import find_files, read_rows
from fastgrpo.data.schemas import Item, parse, schema_of


@dataclass(frozen=True, slots=True)
class Problem:
    row: int  # 0-based; in a folder, counted through its files in their order
    text: str  # with the suffix
    answer: str
    level: int | None = None  # difficulty, where the data set has it


@dataclass(frozen=True, slots=True)
class Problems:
    """What was read. ``num_rows == len(problems) + num_duplicates + num_unanswered``."""

    problems: list[Problem]
    source: str
    num_rows: int
    num_duplicates: int  # rows whose problem came before, with the same answer or another
    num_conflicts: int  # duplicates whose answer differs from the one that was kept
    num_unanswered: int  # rows with an empty answer

    def __len__(self) -> int:
        return len(self.problems)

    def __iter__(self) -> Iterator[Problem]:
        return iter(self.problems)


def load_problems(source: str, suffix: str) -> Problems:
    """Reads a .parquet, .jsonl or .json file, a folder of them, or a hub data set (owner/name, owner/name:path).

    Instructions that the data set puts around a problem are removed (DAPO's, JustRL's), white space at both ends too,
    and `suffix` is appended. Rows whose problem is, before that trimming, exactly one that came before are dropped and
    counted: DAPO-Math-17k repeats its rows. So are rows whose answer is an empty text, which no verifier could
    accept: two of MATH's 12,000 are so.

    Raises ValueError, naming file and row, where the source is missing or empty, a file is broken, its columns are
    unknown, or a row lacks an answer, has an empty problem or one that is not a single user message.
    """
    first: dict[str, Item] = {}
    problems: list[Problem] = []
    num_rows = num_duplicates = num_conflicts = num_unanswered = 0
    for row_number, item in enumerate(_items(source, suffix)):
        num_rows += 1
        if not item.answer:
            num_unanswered += 1
        elif (kept := first.setdefault(item.body, item)) is not item:
            num_duplicates += 1
            num_conflicts += kept.answer != item.answer
        else:
            problems.append(Problem(row_number, item.body.strip() + suffix, item.answer, item.level))
    if not problems:
        raise ValueError(f"{source!r} holds no problem with an answer ({num_rows} rows were read).")
    return Problems(problems, source, num_rows, num_duplicates, num_conflicts, num_unanswered)


def _items(source: str, suffix: str) -> Iterator[Item]:
    for file in find_files(source):
        extract = None
        for row in read_rows(file):
            extract = extract or schema_of(row)
            yield parse(row, extract, suffix)
