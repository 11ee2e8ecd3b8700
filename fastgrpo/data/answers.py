r"""The gold of a row -> its text: unwrapped where the data set wraps it, refused where no response could match it."""

import ast
import contextlib
import json
import math
import re
import warnings
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Any

NO_ANSWER = {"None", "nan", "NaN", "null", "NULL", "<NA>", "notfound", "proof"}
"""What tables write where there is nothing, and NuminaMath-1.5 where nothing can be compared."""

_UNREADABLE = (ValueError, SyntaxError, RecursionError, MemoryError, TypeError)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?P<brace>\{)?")
_PARTS_OF_BOXES = re.compile(r"\\{1,4}(?:boxed|fbox)\s*(?:(?P<brace>\{)|(?P<word>[^\s$\\{}]+))|\\.|[{}]", re.DOTALL)
# \frac, \beta, \verb, \alpha and \times behind a backslash that was read as an escape.
_ESCAPED = re.compile(r"[\x07\x08\x0b\x0c][a-z]{2,}|\t(?:imes|heta|ext|frac)\b|\r(?:ight|ho)|\n(?:eq|abla|otin)\b")
_CONTROLS = "\x07\x08\x0b\x0c"


def answer_text(answer: Any) -> str:
    """The answer as text; empty where the row says that it has none.

    A whole number that a table turned into a float becomes whole again, and no number has an exponent. A list of one
    element is this element, also where the list or the text was written as JSON once more (Skywork-OR1). Raises
    ValueError for what is no answer: several of them, none, another type, a text with half a character in it.
    """
    if isinstance(answer, str):
        answer = _decoded(_checked(answer))
    if isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]
    if isinstance(answer, str):
        text = unwrap_answer(_checked(answer))
        return "" if text in NO_ANSWER else text
    if isinstance(answer, list) and len(answer) > 1:
        raise ValueError(f"the row has {len(answer)} answers, {shown(answer)}, and a verifier compares with one")
    if answer is None or answer == [] or not _is_finite(answer):
        raise ValueError("the row has no answer")
    if isinstance(answer, bool) or not isinstance(answer, int | float | Decimal):
        raise ValueError(f"the answer must be text or a number, got {shown(answer)}")
    return _digits(answer)


def _is_finite(answer: Any) -> bool:
    return not isinstance(answer, float | Decimal) or math.isfinite(answer)


def _digits(number: int | float | Decimal) -> str:
    if isinstance(number, int) or number == int(number):
        return str(int(number))
    written = number if isinstance(number, Decimal) else Decimal(repr(number))
    return format(written, "f").rstrip("0")


def _decoded(text: str) -> Any:
    """``["5"]`` as the list that it is, and ``"5"`` in quotes as its text. Lists of numbers are intervals or vectors
    when they have several, so those stay texts."""
    if text[:1] + text[-1:] not in ("[]", '""'):
        return text
    value = as_value(text, (json.loads,) if text[0] == '"' else (json.loads, ast.literal_eval))
    if isinstance(value, str) or (isinstance(value, list) and _is_wrapping(value)):
        return value
    return text


def _is_wrapping(values: list[Any]) -> bool:
    return any(isinstance(v, str) for v in values) or (len(values) == 1 and isinstance(values[0], int | float))


def as_value(text: str, readers: Iterable[Callable[[str], Any]] = (json.loads, ast.literal_eval)) -> Any:
    """What a text says that was written as JSON, or as Python writes lists; None if it is neither."""
    for read in readers:
        with warnings.catch_warnings(), contextlib.suppress(*_UNREADABLE):
            warnings.simplefilter("ignore")  # of LaTeX, which Python takes for bad escapes
            return read(text)
    return None


def _checked(text: str) -> str:
    """The text without white space at its ends, which a form feed of a broken ``\\frac`` would be."""
    if not is_text(text):
        raise ValueError("the answer holds half a surrogate pair, which no tokenizer writes")
    if broken := _ESCAPED.search(text):
        raise ValueError(
            f"the answer {shown(text)} holds {broken[0]!r}: the backslash of a LaTeX command was read as an escape, "
            f"and no response can match it. Write the file with its backslashes doubled"
        )
    return text.strip().strip(_CONTROLS).strip()


def unwrap_answer(answer: str) -> str:
    r"""``\boxed{204}`` -> ``204``; anything but one single box stays."""
    box = _BOX.match(answer)
    end = _closing(answer, box.end()) if box and box["brace"] else None
    return answer if box is None or end != len(answer) else answer[box.end() : -1].strip()


def last_box(solution: str) -> str:
    r"""What stands in the last ``\boxed{...}`` of a solution; empty where there is none that is closed."""
    last, found = -1, ""
    opened: list[int | None] = []  # for each brace: where its box begins, if it is one's
    for part in _PARTS_OF_BOXES.finditer(solution):
        if part["brace"] or part["word"]:
            if part["word"]:
                last, found = part.start(), part["word"]
            else:
                opened.append(part.end())
        elif part[0] == "{":
            opened.append(None)
        elif part[0] == "}" and opened and (start := opened.pop()) is not None and start > last:
            last, found = start, solution[start : part.start()].strip()
    return found


def _closing(text: str, start: int) -> int | None:
    """The place behind the brace that closes one before ``start``."""
    depth = 1
    for brace in re.finditer(r"\\.|[{}]", text[start:], re.DOTALL):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if not depth:
            return start + brace.end()
    return None


def is_text(text: str) -> bool:
    """Whether it is free of half surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
