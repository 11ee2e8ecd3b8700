"""DAPO's training verifier: the last line with "Answer:" must equal the answer after Minerva's normalisation."""

import re

from fastgrpo.rewards.known_answers import known_answers

WINDOW_CHARS = 300  # the longest answer in MATH-500 has 159
MAX_ANSWER_CHARS = 3000  # the time of the patterns grows with the square of the length
ANSWER_LINE = re.compile(r"answer\s*:\s*([^\n]+)", re.IGNORECASE)

REPLACED = (
    ("an ", ""),
    ("a ", ""),
    (".$", "$"),
    ("\\$", ""),
    ("\\ ", ""),
    (" ", ""),
    ("mbox", "text"),
    (",\\text{and}", ","),
    ("\\text{and}", ","),
    ("\\text{m}", "\\text{}"),
)
UNITS = (
    "square ways integers dollars mph inches hours km units \\ldots sue points feet minutes digits cents degrees cm gm "
    "pounds meters meals edges students childrentickets multiples"
)
REMOVED = (
    *UNITS.split(),
    "\\text{s}",
    "\\text{.}",
    "\\text{\ns}",
    "\\text{}^2",
    "\\text{}^3",
    "\\text{\n}",
    "\\text{}",
    "\\mathrm{th}",
    "^\\circ",
    "^{\\circ}",
    "\\;",
    ",\\!",
    "{,}",
    '"',
    "\\dots",
)
REWRITTEN = (
    (re.compile(r"\\text\{(.*?)\}"), r"\1"),
    (re.compile(r"\\textbf\{(.*?)\}"), r"\1"),
    (re.compile(r"\\overline\{(.*?)\}"), r"\1"),
    (re.compile(r"\\boxed\{(.*)\}"), r"\1"),
    (re.compile(r"frac([^{])(.)"), r"frac{\1}{\2}"),  # \frac12
    (re.compile(r"sqrt([^{])"), r"sqrt{\1}"),
)


@known_answers(
    ("Six times seven.\nAnswer: 42", "42", True),
    ("Six times seven.\nAnswer: $\\frac12$.", "\\frac{1}{2}", True),
    ("Six times seven.\nAnswer: 41", "42", False),
    ("It is \\boxed{42}.", "42", False),
    ("", "42", False),
)
def dapo_minerva(response: str, answer: str) -> bool:
    """Whether the last "Answer: ..." within the last 300 characters of the response equals the answer, both normalised.

    The normalisation takes what follows the last ``=``, removes articles, spaces, units and LaTeX's formatting, writes
    ``\\frac12`` out, and drops thousands separators if only digits are left. Then the texts must be equal: 0.5 is not
    1/2. A response without an answer has the answer "[INVALID]", as in the original. No response meets an answer of
    more than 3,000 characters; the original takes minutes for one of 100,000.

    Source: volcengine/verl verl/utils/reward_score/math_dapo.py with ``strict_box_verify=False``; the normalisation is
    that of Lewkowycz et al. 2022 (Minerva), appendix D.
    """
    if len(answer) > MAX_ANSWER_CHARS:
        return False
    lines = ANSWER_LINE.findall(response[-WINDOW_CHARS:])
    return normalised(lines[-1] if lines else "[INVALID]") == normalised(answer)


def normalised(answer: str) -> str:
    text = answer.rsplit("=", 1)[-1]
    for old, new in REPLACED:
        text = text.replace(old, new)
    for expression in REMOVED:
        text = text.replace(expression, "")
    text = "\n".join(map(_inside_dollars, text.split("\n")))
    for pattern, replacement in REWRITTEN:
        text = pattern.sub(replacement, text)
    text = text.replace("$", "")
    digits = text.replace(",", "")
    return (digits if digits.isdigit() else text).strip()


def _inside_dollars(line: str) -> str:
    """The first pair of dollars and what it holds, or the line. As one pattern this takes quadratic time."""
    parts = line.split("$", 2)
    return f"${parts[1]}$" if len(parts) == 3 else line
