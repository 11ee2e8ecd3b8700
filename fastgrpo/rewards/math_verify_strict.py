r"""math-verify's reading and comparison of one closed box, without what the library drops, guesses or rounds away."""

import re
from collections import Counter
from typing import Any

from fastgrpo.rewards.grading.agreement import agree
from fastgrpo.rewards.grading.bounds import MAX_CHARS
from fastgrpo.rewards.grading.boxes import answer_of, closing_brace, last_boxed
from fastgrpo.rewards.hf_math_verify import equal_values, value_of_answer
from fastgrpo.rewards.known_answers import EQUIVALENT, SELF_TEST, known_answers

TEXT = re.compile(r"\\(?:text[a-z]*|mbox|hbox|mathrm|operatorname)\s*\{([^{}]*)\}(\^\{?[0-9]\}?)?")
BARE_UNIT = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}\.?\s*$")
WORD = re.compile(r"[^\W\d_]+")
NO_UNITS = {"and", "or", "e", "i"}  # words that join answers, and letters of mathematics
# What TeX takes of \frac123 is 1/2, then 3; of \sqrt12 it is the root of 1.
PERCENT = re.compile(r"\s*\\(?:text|mbox|mathrm)\s*\{\s*(?:percent|%|\\%)\s*\}|\s*(?<![a-zA-Z\\])percent\b")
UNBRACED_FRACTION = re.compile(r"(\\[dtc]?frac)\s*([0-9a-zA-Z]|\{[^{}]*\})\s*([0-9a-zA-Z]|\{[^{}]*\})")
UNBRACED_ROOT = re.compile(r"(\\sqrt)\s*([0-9a-zA-Z])")
# Other bases, angles and points by their letters, times of day, ratios, negated relations: what no value tells apart.
ONLY_AS_TEXT = re.compile(r"[0-9]_|^[^a-z]*[A-Z]{2,}[^a-z]*$|:|\\not|\\neq?(?![a-z])|≠")


@known_answers(
    *SELF_TEST,
    *EQUIVALENT,
    ("First \\boxed{42}. No: $\\boxed{", "42", False),
    ("Six times seven: the answer is 42.", "42", False),
    ("It is \\boxed{42\\text{ km}}.", "42\\text{ m}", False),
)
def math_verify_strict(response: str, answer: str) -> bool:
    r"""Whether the last box, closed and not empty, holds the answer by math-verify, with the same units.

    What ``math_verify`` accepts and mathematics does not is wrong here: an earlier box, or a number outside the box,
    where the last one says nothing; numbers that are equal only to 6 places or beside 1; other units, or none; another
    time of day; ``\frac123`` for 1/23; another base; the last side of a false equation; a tuple for a set. So are
    some right answers: every one outside a box, and one with a unit where the answer has none.

    Source: ours.
    """
    given, wanted = last_boxed(response), answer_of(answer)
    if given is None or not given.strip() or not wanted.strip():
        return False
    if max(len(given), len(wanted)) > MAX_CHARS:
        return given == wanted
    given, wanted = _braced(given), _braced(wanted)
    if _bare(given) == _bare(wanted):
        return True
    if ONLY_AS_TEXT.search(given) or ONLY_AS_TEXT.search(wanted) or _units(given) != _units(wanted):
        return False
    gold, target = value_of_answer(wanted), value_of_answer(given)
    if gold is None or target is None or not equal_values([gold], [target]):
        return False
    try:
        return agree(gold, target)
    except MemoryError:
        raise
    except Exception:  # as where values are compared: sympy raises many kinds of errors, and then they are not equal
        return False


def _braced(latex: str) -> str:
    """The text with braces where TeX takes one character for an argument, and none around it; percent as a sign."""
    latex = PERCENT.sub(r"\\%", latex).strip()
    if latex.startswith("{") and closing_brace(latex, 1) == len(latex) - 1:
        latex = latex[1:-1]
    return UNBRACED_ROOT.sub(r"\1{\2}", UNBRACED_FRACTION.sub(_with_braces, latex))


def _with_braces(fraction: re.Match[str]) -> str:
    parts = (part if part.startswith("{") else f"{{{part}}}" for part in fraction.groups()[1:])
    return fraction[1] + "".join(parts)


def _bare(latex: str) -> str:
    """The text without spaces and fonts."""
    return re.sub(r"\s|\\[,;:! ]", "", TEXT.sub(r"\1\2", latex))


def _units(latex: str) -> Counter[Any]:
    """The words and signs beside a value that math-verify drops; none of an answer that is all words."""
    outside = TEXT.sub(" ", latex)
    if not re.search(r"[0-9\\]|(?<![a-zA-Z])[a-zA-Z](?![a-zA-Z])", outside):
        return Counter()
    found = [(word, power) for text, power in TEXT.findall(latex) for word in WORD.findall(text)]
    found += [(bare[0], "") for bare in [BARE_UNIT.search(outside)] if bare]
    units = [(word.lower().rstrip("s"), power.strip("^{}")) for word, power in found if word.lower() not in NO_UNITS]
    return Counter(units + [(sign, "") for sign in ("\\circ", "°", "\\degree", "\\$") if sign in latex])
