"""A source -> the problems in it, each once, with the instruction that a run gives."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count

from fastgrpo.data.answers import is_text
from fastgrpo.data.messages import History
from fastgrpo.data.read import find_files
from fastgrpo.data.schemas import parse, read_problem_rows, schema_of
from fastgrpo.types import Prompt


@dataclass(frozen=True, slots=True)
class Problems:
    """The problems of a source. ``num_rows == len(problems) + num_duplicates + num_unanswered + num_unwanted``."""

    problems: list[Prompt]
    source: str
    num_rows: int
    num_duplicates: int  # rows whose problem came before, with the same answer or another
    num_conflicts: int  # duplicates whose answer differs from the one that was kept
    num_unanswered: int  # rows that were left out because their answer is empty
    num_unwanted: int = 0  # rows of another level, or of which the recipe makes no statement

    def __len__(self) -> int:
        return len(self.problems)

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.problems)


Statement = Callable[[Prompt], str | None]


def load_problems(
    source: str,
    suffix: str,
    template: str = "",
    levels: tuple[int, ...] = (),
    statement: Statement | None = None,
    need_answers: bool = True,
) -> Problems:
    """Reads a .parquet, .jsonl or .json file, a folder of them, or a hub data set (owner/name, owner/name:path).

    Instructions that the data set puts around a problem are removed (DAPO's, JustRL's), white space at both ends too,
    and `suffix` is appended. Rows whose problem is, before that trimming, exactly one that came before are dropped and
    counted: DAPO-Math-17k repeats its rows. So are rows whose answer is an empty text, which no verifier could
    accept: two of MATH's 12,000 are so.

    ``template`` holds the problem in place of ``{problem}``, and stands for the suffix. ``levels`` keeps rows of these
    difficulties, and those that have none. ``statement`` may put something else in the place of a problem's text, or
    refuse it with None. Without ``need_answers`` rows stay that have an empty answer or none: their reward reads them
    whole.

    Raises ValueError, naming file and row, where the source is missing or empty, a file is broken, its columns are
    unknown, or a row lacks an answer, has an empty problem or a chat that does not end with the user's message.
    """
    first: dict[tuple[History, str], str] = {}  # problem as it was written -> answer
    problems: list[Prompt] = []
    num_rows = num_duplicates = num_conflicts = num_unanswered = num_unwanted = 0
    for written in _rows(source, suffix, template, need_answers):
        num_rows += 1
        problem = _with_text(written, written.text.strip())
        is_wanted = not levels or problem.level in (None, *levels)
        text = None if not is_wanted else _stated(statement, problem) if statement else problem.text
        key = problem.history, written.text
        if need_answers and not problem.answer:
            num_unanswered += 1
        elif text is None:
            num_unwanted += 1
        elif key in first:
            num_duplicates += 1
            num_conflicts += first[key] != problem.answer
        else:
            first[key] = problem.answer
            whole = template.replace("{problem}", text) if template else text + suffix
            problems.append(_with_text(problem, whole))
    if not problems:
        unwanted = f", {num_unwanted} of another level or unwanted by the recipe" if num_unwanted else ""
        what = "no problem with an answer" if need_answers else "no problem"
        hint = " Only a reward that asks for `row` can do without answers." if num_unanswered else ""
        raise ValueError(f"{source!r} holds {what} ({num_rows} rows were read{unwanted}).{hint}")
    return Problems(problems, source, num_rows, num_duplicates, num_conflicts, num_unanswered, num_unwanted)


def _with_text(problem: Prompt, text: str) -> Prompt:
    return problem if problem.text == text else replace(problem, text=text)  # a copy is what takes the time


def _stated(statement: Statement, problem: Prompt) -> str | None:
    """What a recipe makes of a problem, a text that can be encoded or None."""
    text = statement(problem)
    if text is None or is_text(text):
        return text
    raise ValueError(f"row {problem.row}: the recipe's problem_text holds half a surrogate pair, as its solution does")


def _rows(source: str, suffix: str, template: str, need_answers: bool) -> Iterator[Prompt]:
    numbers = count()
    for file in find_files(source):
        schema = None
        for row in read_problem_rows(file, need_answers):
            schema = schema or schema_of(row.values, row.where, need_answers)
            yield parse(row, next(numbers), schema, suffix, template, need_answers)
