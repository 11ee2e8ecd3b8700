"""What the columns of a row mean: the schemas of public mathematics data, and the wrappings that they put around a
problem and its answer."""

import math
import re
from collections.abc import Callable
from typing import Any

from fastgrpo.data.read import Row
from fastgrpo.types import Prompt

# DAPO-Math-17k puts these around every problem. JustRL trains without them (thunlp/JustRL issue 1).
DAPO_PREFIX = (
    "Solve the following math problem step by step. The last line of your response should be of the form "
    "Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n"
)
DAPO_SUFFIX = '\n\nRemember to put your answer on its own line after "Answer:".'
# The second is a published slip: a format string that was never formatted (thunlp/OPD: dapo-math-17k-processed).
INSTRUCTIONS = (
    "Please reason step by step, and put your final answer within \\boxed{}.",
    "Please reason step by step, and put your final answer within \\boxed{{}}.",
)
# SimpleRL-Zoo's (arXiv 2503.18892, figure 10; hkust-nlp/simpleRL-reason utils.py, "abel" and "qwen-boxed"): the whole
# prompt of a base model, which its rows carry. The simple one is for models that follow instructions badly.
SIMPLERL_TEMPLATES = {
    "simple": "Question:\n{problem}\nAnswer:\nLet's think step by step.\n",
    "boxed": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{problem}\n"
        "Please reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n<|im_start|>assistant\n"
    ),
}
_SEPARATORS = ("\n\n", "\n", " ")

Extract = Callable[[dict[str, Any]], tuple[Any, Any]]  # the columns of a row -> (problem, answer), unchecked


def parse(row: Row, number: int, extract: Extract, suffix: str, template: str = "", need_answer: bool = True) -> Prompt:
    """The row, ``number`` in its source, by its schema. Its text is the problem as it was written, its white space
    included, without anybody's instructions; its answer is empty where the data set has none, and, unless it is needed,
    where there is one that is neither text nor a number.

    Raises ValueError, naming file and row, for what is missing or has the wrong type.
    """
    try:
        problem, answer = extract(row.values)
        if not isinstance(problem, str):
            raise ValueError(f"the problem must be text, got {_shown(problem)}")
        body = unwrap_problem(unwrap_template(problem, template), suffix)
        if not body.strip():
            raise ValueError("the problem is empty")
        if not _is_text(body):
            raise ValueError("the problem holds half a surrogate pair, which no tokenizer reads")
        level = level_number(row.values.get("level"))
        return Prompt(number, body, _answer_of(answer, need_answer), level, solution_text(row.values))
    except ValueError as error:
        raise ValueError(f"{row.where}: {error}.") from None


def schema_of(row: Row, need_answer: bool = True) -> Extract:
    """How to get (problem, answer) out of rows like this one. Raises ValueError where no schema fits."""
    for columns, extract in (SCHEMAS if need_answer else SCHEMAS | WITHOUT_ANSWER).items():
        if all(c in row.values for c in columns):
            return extract
    known = "; ".join(" and ".join(columns) for columns in SCHEMAS)
    alone = ", ".join(columns[0] for columns in WITHOUT_ANSWER)
    raise ValueError(
        f"{row.where}: no known schema has the columns {', '.join(row.values)}. Known: {known}; for a reward that asks "
        f"for `row` any of {alone} without an answer."
    )


def _verl(values: dict[str, Any]) -> tuple[Any, Any]:
    """verl's rows: ``prompt`` is a chat, ``reward_model.ground_truth`` the answer."""
    problem, reward_model = _user_message(values.get("prompt")), values.get("reward_model")
    if not isinstance(reward_model, dict):
        raise ValueError(f"reward_model must be an object with a ground_truth, got {_shown(reward_model)}")
    return problem, reward_model.get("ground_truth")


def _user_message(messages: Any) -> Any:
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise ValueError(f"prompt must be a list of messages, got {_shown(messages)}")
    roles = [m.get("role") for m in messages]
    if roles != ["user"]:
        raise ValueError(f"prompt must be exactly one user message, got the roles {roles}")
    return messages[0].get("content")


def _prompt(values: dict[str, Any]) -> tuple[Any, Any]:
    """TRL's rows: ``prompt`` is a text or a chat."""
    prompt = values.get("prompt")
    return prompt if isinstance(prompt, str) else _user_message(prompt), values.get("answer")


def _plain(values: dict[str, Any]) -> tuple[Any, Any]:
    """MathArena's rows, as BRUMO25, CMIMC25 and HMMT25 have them."""
    return values.get("problem"), values.get("answer")


def _gsm8k(values: dict[str, Any]) -> tuple[Any, Any]:
    """GSM8K's rows: a worked solution whose last line is ``#### 1,234``. An answer of one line is taken as it is."""
    question, answer = values.get("question"), values.get("answer")
    if isinstance(answer, str):
        _, mark, final = answer.rpartition("####")
        if not mark and "\n" in answer.strip():
            raise ValueError("the answer has several lines, none of which begins with ####")
        # The usual graders compare without the commas of thousands.
        answer = final.replace(",", "") if mark else answer
    return question, answer


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


SCHEMAS: dict[tuple[str, ...], Extract] = {
    ("prompt", "reward_model"): _verl,
    ("problem", "answer"): _plain,
    ("question", "answer"): _gsm8k,
}
WITHOUT_ANSWER: dict[tuple[str, ...], Extract] = {
    ("problem",): _plain,
    ("question",): _gsm8k,
    ("prompt",): _prompt,
}
"""What will do besides where the reward asks for the whole row, as one does that runs tests which stand there."""


def unwrap_problem(text: str, suffix: str) -> str:
    """The problem without DAPO's and JustRL's instructions and without `suffix`.

    Its own white space stays, because it tells two rows of DAPO-Math-17k apart: of an instruction goes with it only
    the one separator that was put before it.
    """
    text = text.removeprefix(DAPO_PREFIX).removesuffix(DAPO_SUFFIX)
    for instruction in (*INSTRUCTIONS, suffix.strip()):
        shorter = text.rstrip().removesuffix(instruction)
        if instruction and shorter != text.rstrip():
            separator = next((s for s in _SEPARATORS if shorter.endswith(s)), "")
            return shorter.removesuffix(separator)
    return text


def unwrap_template(text: str, template: str) -> str:
    """The problem of a text that is the whole template already, as SimpleRL-Zoo's rows are; any other text stays."""
    before, _, after = template.partition("{problem}")
    is_whole = template and text.startswith(before) and text.rstrip().endswith(after.rstrip())
    if not is_whole:
        return text
    return text.removeprefix(before) if not after else text.rstrip().removeprefix(before).removesuffix(after.rstrip())


def unwrap_answer(answer: str) -> str:
    r"""``\boxed{204}`` -> ``204``; anything but one single box stays."""
    if not (answer.startswith("\\boxed{") and answer.endswith("}")):
        return answer
    inside = answer[len("\\boxed{") : -1]
    depth = 0
    for char in re.sub(r"\\[{}]", "", inside):
        depth += (char == "{") - (char == "}")
        if depth < 0:  # the first box was closed before the end
            return answer
    return inside.strip() if depth == 0 else answer


def _answer_of(answer: Any, is_needed: bool) -> str:
    try:
        return unwrap_answer(answer_text(answer))
    except ValueError:
        if is_needed:
            raise
        return ""


def answer_text(answer: Any) -> str:
    """The answer as text. A whole number that a table turned into a float becomes whole again."""
    if isinstance(answer, str):
        return answer.strip()
    if answer is None or (isinstance(answer, float) and not math.isfinite(answer)):
        raise ValueError("the row has no answer")
    if isinstance(answer, bool) or not isinstance(answer, int | float):
        raise ValueError(f"the answer must be text or a number, got {_shown(answer)}")
    return str(int(answer)) if isinstance(answer, int) or answer.is_integer() else str(answer)


def solution_text(values: dict[str, Any]) -> str:
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


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
