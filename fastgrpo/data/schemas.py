"""What the columns of a row mean: the schemas of public mathematics data."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastgrpo.data.answers import answer_text, as_value, is_text, last_box, shown
from fastgrpo.data.instructions import unwrap_problem, unwrap_template
from fastgrpo.data.messages import Asked, asked_of, conversation
from fastgrpo.data.read import Row, read_rows
from fastgrpo.types import Prompt

Columns = dict[str, Any]
"""The columns of a row, by their names in small letters with ``_`` between words."""


def _verl(values: Columns) -> Asked:
    """verl's rows: ``reward_model.ground_truth`` is the answer. open-r1 keeps that beside a prompt that is a text."""
    reward_model = values.get("reward_model")
    if isinstance(reward_model, str):
        reward_model = as_value(reward_model)
    if not isinstance(reward_model, dict):
        raise ValueError(f"reward_model must be an object with a ground_truth, got {shown(values['reward_model'])}")
    return asked_of(values.get("prompt"))._replace(answer=reward_model.get("ground_truth"))


def _gsm8k(values: Columns) -> Asked:
    """GSM8K's rows: a worked solution whose last line is ``#### 1,234``. An answer of one line is taken as it is."""
    answer = values.get("answer")
    if isinstance(answer, str):
        _, mark, final = answer.rpartition("####")
        if not mark and "\n" in answer.strip():
            raise ValueError("the answer has several lines, none of which begins with ####")
        # The usual graders compare without the commas of thousands.
        answer = final.replace(",", "") if mark else answer
    return asked_of(values.get("question"))._replace(answer=answer)


def _turns(values: Columns) -> Asked:
    """Open-Reasoner-Zero's rows: a question, and a reply that has the answer."""
    return conversation(values.get("conversations", [values.get("0"), values.get("1")]))


def _columns(problem: str, answer: str = "") -> Callable[[Columns], Asked]:
    def asked(values: Columns) -> Asked:
        found = values.get(problem)
        asked = conversation(found) if problem == "messages" else asked_of(found)
        return asked._replace(answer=values.get(answer)) if answer else asked

    return asked


def _solved(problem: str) -> Callable[[Columns], Asked]:
    """MATH's and NuminaMath's rows: the answer stands in the last box of a worked solution. A solution that is one
    formula or number, as TRL's data sets have it, is the answer; any other without a box gives none."""

    def asked(values: Columns) -> Asked:
        solution = values.get("solution")
        if solution is None or not isinstance(solution, str):
            return asked_of(values.get(problem))._replace(answer="" if solution is None else solution)
        whole = re.fullmatch(r"\$[^$\n]+\$|[-+]?[\d.,]+", solution.strip())
        return asked_of(values.get(problem))._replace(answer=whole[0] if whole else last_box(solution))

    return asked


PROBLEMS = ("problem", "question", "prompt", "query", "instruction", "input")
ANSWERS = (
    "answer", "final_answer", "expected_answer", "correct_answer", "reference_answer", "ground_truth", "gold_answer",
    "gold", "target",
)  # fmt: skip
BESIDES = ("level", "solution", "generation")

SCHEMAS: dict[tuple[str, ...], Callable[[Columns], Asked]] = {
    ("prompt", "reward_model"): _verl,
    **{(problem, answer): _columns(problem, answer) for answer in ANSWERS for problem in PROBLEMS},
    ("question", "answer"): _gsm8k,  # in the place of the usual one
    **{(problem, "solution"): _solved(problem) for problem in PROBLEMS},
    **{("messages", answer): _columns("messages", answer) for answer in ANSWERS},
    ("messages",): _columns("messages"),
    ("conversations",): _turns,
    ("0", "1"): _turns,
}
WITHOUT_ANSWER: dict[tuple[str, ...], Callable[[Columns], Asked]] = {(name,): _columns(name) for name in PROBLEMS}
"""What will do besides where the reward asks for the whole row, as one does that runs tests which stand there."""


@dataclass(frozen=True)
class Schema:
    """How a file's rows are read. ``names`` are its own spellings of the columns that are looked at."""

    names: dict[str, str]  # by the names that they have here
    asked: Callable[[Columns], Asked]

    def read(self, values: dict[str, Any]) -> tuple[Asked, Columns]:
        found = {name: values[column] for name, column in self.names.items() if column in values}
        return self.asked(found), found


def schema_of(columns: Collection[str], where: str, need_answer: bool = True) -> Schema:
    """How rows with these columns are read: the first schema that fits. Raises ValueError where none does."""
    names = _plain_names(columns)
    for needed, asked in (SCHEMAS if need_answer else SCHEMAS | WITHOUT_ANSWER).items():
        if all(name in names for name in needed):
            return Schema({name: names[name] for name in (*needed, *BESIDES) if name in names}, asked)
    raise ValueError(
        f"{where}: no known schema has the columns {', '.join(columns)}. Known: a problem ({', '.join(PROBLEMS)}) and "
        f"its answer ({', '.join(ANSWERS)}, or solution with a box in it); prompt and reward_model; messages or "
        f"conversations; for a reward that asks for `row` a problem alone. Rename the columns."
    )


def read_problem_rows(file: Path, need_answer: bool = True) -> Iterator[Row]:
    """The rows of a file; of parquet, with the columns alone that its schema looks at. Raises ValueError."""

    def choose(columns: Collection[str]) -> Collection[str]:
        return schema_of(columns, str(file), need_answer).names.values()

    return read_rows(file, choose)


def _plain_names(columns: Iterable[str]) -> dict[str, str]:
    """The columns by their names in small letters; of two that are then the same, the one that is spelt so."""
    names: dict[str, str] = {}
    for column in columns:
        plain = re.sub(r"[\s_-]+", "_", str(column).strip().lower())
        if plain not in names or column == plain:
            names[plain] = column
    return names


def parse(row: Row, number: int, schema: Schema, suffix: str, template: str = "", need_answer: bool = True) -> Prompt:
    """The row, ``number`` in its source, by its schema. Its text is the problem as it was written, its white space
    included, without anybody's instructions: of a chat, its last message. Its answer is empty where the data set has
    none, and, unless it is needed, where there is one that is neither text nor a number.

    Raises ValueError, naming file and row, for what is missing or has the wrong type.
    """
    try:
        asked, values = schema.read(row.values)
        if not isinstance(asked.question, str):
            raise ValueError(f"the problem must be text, got {shown(asked.question)}")
        body = unwrap_problem(unwrap_template(asked.question, template), suffix)
        if not body.strip():
            raise ValueError("the problem is empty")
        if not all(map(is_text, (body, *(text for _, text in asked.history)))):
            raise ValueError("the problem holds half a surrogate pair, which no tokenizer reads")
        answer = _answer_of(asked.answer, need_answer)
        level, solution = level_number(values.get("level")), solution_text(values)
        return Prompt(number, body, answer, level, solution, history=asked.history)
    except ValueError as error:
        raise ValueError(f"{row.where}: {error}.") from None


def _answer_of(answer: Any, is_needed: bool) -> str:
    try:
        return answer_text(answer)
    except ValueError:
        if is_needed:
            raise
        return ""


def solution_text(values: Columns) -> str:
    """A reference solution without the thoughts that led to it: what follows the last ``</think>`` of a generation, its
    white space included, for hints are cut by characters. Some of QuestA's generations stand in quotes."""
    solution, generation = values.get("solution"), values.get("generation")
    if isinstance(generation, str) and not solution:
        solution = generation[1:-1] if generation.startswith('"') else generation
    return solution.rpartition("</think>")[2] if isinstance(solution, str) else ""


def level_number(level: Any) -> int | None:
    """The number in 3, 3.0, "3" and "Level 3" (MATH's); None where there is none, as in MATH's "Level ?"."""
    match = re.fullmatch(r"(?:Level )?(\d+)(?:\.0)?", str(level))
    return int(match[1]) if match else None


def verl_row(problem: str, answer: str, solution: str) -> dict[str, Any]:
    """A row as verl's data sets have them, DAPO-Math-17k's among them."""
    return {
        "data_source": "made_up",
        "prompt": [{"role": "user", "content": problem}],
        "ability": "MATH",
        "reward_model": {"ground_truth": answer, "style": "rule"},
    }


def generation_row(problem: str, answer: str, solution: str) -> dict[str, Any]:
    """A row as QuestA's data sets have them: a whole generation, its thoughts first."""
    return {"problem": problem, "generation": f"<think>\nLet me see.\n</think>\n{solution}", "answer": answer}


def solution_row(problem: str, answer: str, solution: str) -> dict[str, Any]:
    """A row as DeepScaleR has them."""
    return {"problem": problem, "solution": solution, "answer": answer}
