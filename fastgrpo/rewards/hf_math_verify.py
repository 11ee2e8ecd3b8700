r"""Hugging Face's math-verify: its patterns find the answer, latex2sympy reads it, its grader compares.

The parts of the library are called one by one, for two reasons. Its ``parse`` gives plain expressions such as ``3*4/5``
to sympy's ``parse_expr``, which evaluates Python; ours uses ``parse_arithmetic``. And it computes what it reads without
a limit, so it hangs on ``5^{5^{5^{5^5}}}``; ours checks the size first. Its timeouts work only in the main thread; the
pool has its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any

from fastgrpo.rewards.grading.arithmetic import NotArithmetic, parse_arithmetic
from fastgrpo.rewards.grading.bounds import MAX_CHARS, readable, small_enough
from fastgrpo.rewards.known_answers import EQUIVALENT, SELF_TEST, UNBOXED_IS_RIGHT, known_answers

if TYPE_CHECKING:  # it and sympy take a second to import, and most verifiers never need them
    from math_verify.parser import ExtractionTarget

Value = Any  # a sympy expression or matrix, or a text

FLOAT_DECIMALS = 6
NUMERIC_DIGITS = 15
MAX_MATCHES = 32  # that are tried: a garbled response may have any number that cannot be read


@known_answers(*SELF_TEST, *EQUIVALENT, UNBOXED_IS_RIGHT)
def math_verify(response: str, answer: str) -> bool:
    """Whether math-verify finds the answer in the response: in a box, after "answer is", or as the last expression.

    Its patterns are tried in their order, each from its rightmost match, and the first match that can be read counts.
    Decimals are compared to 6 places. JustRL validates with it on AIME and AMC, and it is half of ProRL's verifier.

    Source: volcengine/verl verl/utils/reward_score/math_verify.py, on math-verify's grader. Numbers that are too large
    (``bounds.py``) are refused; the original computes them or runs into its timeout.
    """
    latex, plain = _targets()
    gold = answer if "\\boxed" in answer else f"\\boxed{{{answer}}}"
    return equal_values(values_in(gold, (latex,)), values_in(response, (plain, latex)))


def equal_as_boxes(given: str, answer: str) -> bool:
    r"""Whether math-verify finds two answers equal, each put into a ``\boxed{}`` if it is not in one.

    An answer of more than 1,000 characters equals only the same text.
    """
    if len(given) > MAX_CHARS:
        return given == answer
    latex, plain = _targets()
    boxed = [text if "\\boxed" in text else f"\\boxed{{{text}}}" for text in (answer, given)]
    golds, targets = (values_in(text, (latex, plain)) for text in boxed)
    return equal_values(golds, targets)


def value_of_answer(latex: str) -> Value | None:
    """The value of an answer's LaTeX, after the library's normalisation; None where it cannot be read as a whole."""
    return _value_of_latex(_normalised(f"\\boxed{{{latex}}}", _targets()[0], in_box=True), is_percent=False)


def equal_values(golds: list[Value], targets: list[Value]) -> bool:
    """Whether any gold is equal to any target; a text equals only the same text."""
    return any(_equal(gold, target) for gold in golds for target in targets)


def values_in(text: str, targets: tuple[ExtractionTarget, ...]) -> list[Value]:
    """What the library's patterns find: the first expression that can be read, and the text of the first match."""
    found: list[Value] = []
    texts = []
    for match, target in islice(_matches(text, targets), MAX_MATCHES):
        value, source = _read(match, target)
        if source:
            texts.append(source)
        if value is not None:
            found.append(value)
            break
    return found + texts[:1]


@cache
def _targets() -> tuple[ExtractionTarget, ExtractionTarget]:
    from math_verify.parser import ExprExtractionConfig, LatexExtractionConfig

    return LatexExtractionConfig(), ExprExtractionConfig()


def _matches(text: str, targets: tuple[ExtractionTarget, ...]) -> Iterator[tuple[re.Match[str], ExtractionTarget]]:
    """The matches by the priority of their pattern, then from the right. A pattern is searched when it is needed."""
    from math_verify.parser import get_extraction_regexes

    patterns = [
        (priority, pattern, target) for some, target in get_extraction_regexes(targets) for pattern, priority in some
    ]
    patterns.sort(key=lambda pattern: pattern[0])
    for _, group in groupby(patterns, key=lambda pattern: pattern[0]):
        matches = [(match, target) for _, pattern, target in group for match in pattern.finditer(text)]
        yield from sorted(matches, key=lambda found: (-found[0].end(), found[0].start()))


def _read(match: re.Match[str], target: ExtractionTarget) -> tuple[Value | None, str]:
    from math_verify.parser import LatexExtractionConfig

    if isinstance(target, LatexExtractionConfig):
        return _read_latex(match.groupdict(), target)
    return _read_plain(match.groupdict())


def _read_latex(groups: dict[str, str | None], target: Any) -> tuple[Value | None, str]:
    """The expression, or the set of several that are joined by "and" or "or"; and its text."""
    from latex2sympy2_extended.sets import FiniteSet

    values: list[Any] = []
    texts = []
    for name, latex in groups.items():
        if latex is None or "_latex" not in name:
            continue
        prefix = name.split("_")[0]
        text = _normalised(latex, target, in_box=name == "first_latexBoxed")
        values.append(_value_of_latex(text, is_percent=bool(groups.get(f"{prefix}_percent"))))
        texts.append(text)
    if len(values) > 1 and None not in values:
        items = [item for value in values for item in (value.args if isinstance(value, FiniteSet) else [value])]
        return FiniteSet(*items), " and ".join(texts)
    return (values[0], texts[0]) if values else (None, "")


def _normalised(latex: str, target: Any, in_box: bool) -> str:
    """The library's ``normalize_latex`` of the content of the box. A text that is too long for an answer is not
    normalised, because the library's patterns take minutes on a megabyte of digits."""
    from latex2sympy2_extended.latex2sympy2 import NormalizationConfig, normalize_latex

    config = target.normalization_config
    only_box = NormalizationConfig(basic_latex=False, boxed="last" if in_box else config.boxed)
    content = normalize_latex(latex, config=only_box)
    return content if len(content) > MAX_CHARS else normalize_latex(content, config=replace(config, boxed="none"))


def _value_of_latex(latex: str, is_percent: bool) -> Value | None:
    """The value of LaTeX; None if latex2sympy cannot read it, or it is too large to be computed."""
    from latex2sympy2_extended.latex2sympy2 import convert_to_pct
    from math_verify.parser import parse_latex_cached

    if not readable(latex):
        return None
    try:
        value = parse_latex_cached(latex)
        if not small_enough(value):
            return None
        return convert_to_pct(value) if is_percent else value
    except MemoryError:
        raise
    except Exception:  # errors of a grammar, a lexer or sympy's constructors: this is no expression
        return None


def _read_plain(groups: dict[str, str | None]) -> tuple[Value | None, str]:
    """The value and the text of a number, or an expression of numbers, outside LaTeX."""
    from latex2sympy2_extended.latex2sympy2 import convert_to_pct

    found = {name.rstrip("123"): text for name, text in groups.items() if text}
    if "integer" not in found and "decimal" not in found:
        text = found.get("expr", "")
        return (_value_of_plain(text) if text else None), text
    integer = found.get("integer", "").replace(",", "").replace(" ", "").lstrip("0") or "0"
    text = integer + found.get("decimal", "").replace(",", ".")
    value = _value_of_plain(text)
    return (convert_to_pct(value) if value is not None and "percent" in found else value), text


def _value_of_plain(text: str) -> Value | None:
    try:
        return parse_arithmetic(text)
    except NotArithmetic:
        return None


def _equal(gold: Value, target: Value) -> bool:
    from math_verify.grader import sympy_expr_eq

    if isinstance(gold, str) or isinstance(target, str):
        return isinstance(gold, str) and isinstance(target, str) and gold.strip() == target.strip() != ""
    try:
        return bool(sympy_expr_eq(gold, target, FLOAT_DECIMALS, NUMERIC_DIGITS))
    except MemoryError:
        raise
    except Exception:  # sympy raises many kinds of errors if two values cannot be compared: they are not equal
        return False
