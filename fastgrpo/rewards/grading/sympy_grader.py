"""DeepScaleR's second grader: compares two normalised answers item by item, with sympy where that is safe."""

import re
from decimal import Decimal

from fastgrpo.rewards.grading.arithmetic import NotArithmetic, parse_arithmetic
from fastgrpo.rewards.grading.digits import ascii_digits
from fastgrpo.rewards.grading.latex_text import CLOSE, OPEN, TooDeep, plain_text

MAX_CHARS = 1000  # longer answers are equal only if their texts are
MAX_UNKNOWN_LETTERS = 2
INTEGER_TOLERANCE = 1e-7
MAX_EXACT_FLOAT = 2**53
BRACKETS = "()[]"

TEXT_AROUND = re.compile(r"^\\text\{(.+?)\}$")
MILLIONS = (("million", "*10^6"), ("billion", "*10^9"), ("trillion", "*10^12"))
UNITS = "degree cm centimeter meter mile second minute hour day week month year foot feet inch yard"
UNIT = [re.compile(rf"{unit}(?:es)?s? *(?:\^[0-9]+)?") for unit in UNITS.split()]
SEPARATOR = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
MIXED_NUMBER = re.compile(r"([0-9]+) +([0-9]+/[0-9]+(?:\.[0-9]+| *\.)?)")
NUMBER = re.compile(r"[+-]?(?:[0-9]{1,300}\.?[0-9]{0,300}|\.[0-9]{1,300})(?:[eE][+-]?[0-9]{1,2})?")
FRACTION = re.compile(r"-?[0-9]+.?/0*[1-9][0-9]*.?")
# A power in braces or brackets, of a power, or of more than one digit: no answer needs such a power evaluated.
REFUSED = re.compile(r"\^\{|\^\(|\^[0-9]+\^|\^[0-9][0-9]")


def equal_by_sympy(given: str, answer: str) -> bool:
    """Whether both are equal as normalised texts, or item by item as expressions.

    The items are those of a tuple or an interval, whose brackets must be the same. Two fractions of integers must be
    the same text, so an unreduced one is wrong. An integer equals only an integer. Everything else is equal if sympy
    simplifies the difference to 0. Answers with powers in braces or of several digits, or with more than two unknown
    letters, are not given to sympy.

    Source: ``grade_answer_sympy`` of agentica-project/rllm rllm/rewards/math_utils/utils.py, which follows
    openai/prm800k. Ours differs where the original is not safe or not right: it never evaluates text as Python; it does
    not compute numbers that are too large; it compares integers of any length exactly; fractions keep their brackets
    and roots their degree; -7 3/4 is -(7+3/4); a number within 1e-7 of 0 is not 0; an empty box does not equal an
    answer that is only a unit.
    """
    wanted, found = normalised(answer), normalised(given)
    if not found or not wanted:  # an answer that is only a unit is empty without it: an empty box is not "day"
        return False
    if wanted == found:
        return True
    if max(len(answer), len(given)) > MAX_CHARS:
        return False
    wanted_items, found_items = items_of(wanted), items_of(found)
    if len(wanted_items) != len(found_items):
        return False
    if len(wanted_items) > 1 and (wanted[0], wanted[-1]) != (found[0], found[-1]):
        return False
    return all(_same_item(w, f) for w, f in zip(wanted_items, found_items, strict=True))


def normalised(answer: str) -> str:
    """The answer as plain text in lower case, without units, money, percent and spaces; integers as digits.

    A text of more than 1,000 characters is no answer, and is returned as it is.
    """
    if len(answer) > MAX_CHARS:
        return answer
    text = ascii_digits(answer)
    around = TEXT_AROUND.search(text)
    text = around[1] if around else text
    for sign in ("\\%", "\\$", "$", "%"):
        text = text.replace(sign, "")
    text = text.replace(" or ", " , ").replace(" and ", " , ")
    for word, factor in MILLIONS:
        text = text.replace(word, factor)
    for unit in UNIT:
        text = unit.sub("", text)
    text = re.sub(r"\^ *\\circ", "", text)
    if text.startswith("{") and text.endswith("}"):
        text = text[1:-1]
    text = re.sub(r",\\! *", "", text)
    text = _plain(text)
    text = MIXED_NUMBER.sub(rf"{OPEN}\1+\2{CLOSE}", re.sub(r"- *", "-", text))
    text = re.sub(r"([0-9]) +([0-9])", r"\1+\2", text)
    text = re.sub(r"[ {}]", "", text).strip().lower()
    integer = _integer(text)
    return text if integer is None else str(integer)


def items_of(text: str) -> list[str]:
    """The items of a tuple, list or interval, or the text itself if it is none of these."""
    text = _without_separators(text)
    bracketed = len(text) > 2 and text[0] in BRACKETS and text[-1] in BRACKETS
    if bracketed and not any(bracket in text[1:-1] for bracket in BRACKETS):
        return [item.strip() for item in text[1:-1].split(",")]
    return [text]


def _same_item(wanted: str, found: str) -> bool:
    if wanted == found:
        return True
    if FRACTION.fullmatch(wanted) and FRACTION.fullmatch(found):
        return False
    if (_integer(wanted) is None) != (_integer(found) is None):
        return False
    return _same_value(wanted, found)


def _same_value(wanted: str, found: str) -> bool:
    from sympy import simplify

    both = f"({wanted})-({found})".replace("**", "^")
    if "\n" in both or REFUSED.search(both) or _num_unknown_letters(both) > MAX_UNKNOWN_LETTERS:
        return False
    try:
        difference = parse_arithmetic(_plain_brackets(wanted)) - parse_arithmetic(_plain_brackets(found))
    except NotArithmetic:
        return False
    return bool(difference == 0 or simplify(difference).is_zero)


def _plain_brackets(text: str) -> str:
    return text.replace(OPEN, "(").replace(CLOSE, ")")


def _num_unknown_letters(text: str) -> int:
    return len({c for c in text.replace("sqrt", "").replace("frac", "") if c.isalpha()})


def _plain(text: str) -> str:
    if "\\" not in text:
        return text
    try:
        return plain_text(text).strip()
    except TooDeep:
        return text


def _integer(text: str) -> int | None:
    """The integer within 1e-7 of the number in the text; None for anything else, and for a number close to 0."""
    text = _without_separators(text)
    if not NUMBER.fullmatch(text):
        return None
    number = Decimal(text)
    nearest = round(number)
    if nearest == 0 and number != 0:  # 9.1e-31 is not 1.6e-19
        return None
    distance = abs(float(text) - nearest) if abs(nearest) < MAX_EXACT_FLOAT else float(abs(number - nearest))
    return nearest if distance <= INTEGER_TOLERANCE else None


def _without_separators(text: str) -> str:
    return SEPARATOR.sub("", text)
