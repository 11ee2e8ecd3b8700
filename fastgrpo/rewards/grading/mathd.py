"""Equality of two answers as texts, after the normalisation that comes with the MATH data set."""

import re

TEXT_AROUND = re.compile(r"^\\text\{(.+?)\}$")
UNIT = "\\text{ "
CANONICAL = r"(0|-?[1-9][0-9]*)"
A_SLASH_B = re.compile(f"{CANONICAL}/{CANONICAL}")

REPLACED = (
    ("\n", ""),
    ("\\!", ""),
    ("\\\\", "\\"),
    ("tfrac", "frac"),
    ("dfrac", "frac"),
    ("\\left", ""),
    ("\\right", ""),
    ("^{\\circ}", ""),
    ("^\\circ", ""),
    ("\\$", ""),
)


def equal_by_mathd(given: str, answer: str) -> bool:
    r"""Whether both texts are the same after fractions, roots, units and spaces are written in one way.

    ``\dfrac12``, ``\frac{1}{2}``, ``1/2`` and ``0.5`` become the same text; ``1/4`` and ``0.25`` do not.

    Source: ``is_equiv`` of hendrycks/math modeling/math_equivalence.py, as DeepScaleR uses it. On malformed LaTeX the
    original gives up on the whole answer; ours leaves only the malformed part as it is.
    """
    return normalised(given) == normalised(answer)


def normalised(answer: str) -> str:
    text = answer.strip()
    around = TEXT_AROUND.search(text)
    if around:
        text = around[1].strip()
    for old, new in REPLACED:
        text = text.replace(old, new)
    if text.count(UNIT) > 1:
        return answer.strip()
    text = text.split(UNIT)[0]
    text = text.replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.")
    if text.startswith("."):
        text = "0" + text
    return _fractions(_roots(_without_name(text)).replace(" ", ""))


def _without_name(text: str) -> str:
    """The text without a name and ``=`` before it, such as ``x =`` or ``k=``."""
    sides = text.split("=")
    return sides[1] if len(sides) == 2 and len(sides[0]) <= 2 else text


def _roots(text: str) -> str:
    return re.sub(r"\\sqrt([^{])", r"\\sqrt{\1}", text)


def _fractions(text: str) -> str:
    r"""The text with every fraction as ``\frac{a}{b}``, except ``\frac{72}1``, which the original leaves too."""
    text = re.sub(r"\\frac([^{])([^{])", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac([^{])\{", r"\\frac{\1}{", text)
    if text == "0.5":
        return "\\frac{1}{2}"
    return A_SLASH_B.sub(r"\\frac{\1}{\2}", text) if A_SLASH_B.fullmatch(text) else text
