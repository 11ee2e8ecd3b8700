r"""math-verify's reading and comparison of one closed box, without what the library drops, guesses or rounds away."""

import re
import unicodedata
from collections import Counter

from fastgrpo.rewards.grading.agreement import agree
from fastgrpo.rewards.grading.bounds import MAX_CHARS
from fastgrpo.rewards.grading.boxes import answer_of, closing_brace, last_boxed
from fastgrpo.rewards.hf_math_verify import equal_values, value_of_answer
from fastgrpo.rewards.known_answers import EQUIVALENT, SELF_TEST, known_answers

TEXT = re.compile(r"\\(?:text[a-z]*|mbox|hbox|mathrm|mathit|operatorname)\s*\{([^{}]*)\}(\^(?:\{[^{}]*\}|\S))?")
BARE_UNIT = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}\.?\s*$")
PLURAL = re.compile(r"(?<=[a-z]{3})s\b")
WORDS = re.compile(r"[\s(]*[a-zA-Z]{3,}[a-zA-Z\s.)-]*")
JOINING = {"and", "or"}
JOINED = re.compile(r"(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z])")
UPRIGHT = re.compile(r"\\(?:text|mathrm|mathit)\s*\{\s*([a-zA-Z])\s*\}")  # e, i and d of mathematics
# x = 5, (x, y) = (1, 2) and x \in A stand for 5, (1, 2) and A; of a list, each element may.
LEFT_SIDE = re.compile(
    r"(?:^|(?<=,))\s*(?:[a-zA-Z](?:_\{?\w+\}?)?(?:\([a-z]\))?|\([a-z](?:,\s*[a-z])*\))\s*(?:=|\\in(?![a-z]))"
)
INEQUALITY = re.compile(r"[<>≤≥]|\\[lg](?:e|eq|eqslant|t)(?![a-z])")
GREEK = "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi pi rho sigma tau "
GREEK += "upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega ell hbar aleph"
LETTER = re.compile(rf"\\({'|'.join(GREEK.split())})(?![a-zA-Z])|\\[a-zA-Z]+|([a-zA-Z])")
# Square brackets are no round ones, 1 2 is not 12, and A|_{x=7} is not A.
MARK = re.compile(r"'|!!|\\[lcv]?dots|\.\.\.|…|\\[hv]?phantom|(?<![_^][0-9])(?<=[0-9])\s+(?=[0-9])|\[|\]|\\?\|_")
ENVIRONMENT = re.compile(r"\\(?:begin|end)\s*\{[^{}]*\}")
DEGREE = re.compile(r"\\sqrt\s*\[[^\]]*\]")
THOUSANDS = re.compile(r"(?<=[0-9])(?:\{?,\}?(?:\\[!,;:])?|\\[!,;: ]|\s)(?=[0-9]{3}(?![0-9]))")
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
    time of day; ``\frac123`` for 1/23; another base; the last side of a false equation; a tuple for a set; other
    letters, large or small; other primes, dots, factorials, square brackets, or another number of elements. So are
    some right answers: every one outside a box, one with a unit where the answer has none, and one in other letters,
    as an inequality in x for an interval.

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
    if ONLY_AS_TEXT.search(given) or ONLY_AS_TEXT.search(wanted):
        return False
    if _units(given) != _units(wanted) or not _letters(given) & _letters(wanted) or not _marks(given) & _marks(wanted):
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
    """The text without spaces and fonts. A space between two digits is none: 1 2 is not 12, 1 250 is 1250."""
    latex = re.sub(r"(?<=[0-9])\s(?=[0-9]{3}(?![0-9]))", "", latex)
    return re.sub(r"(?<![0-9])\s|\s(?![0-9])|\\[,;:! ]", "", TEXT.sub(r"\1\2", latex))


def _units(latex: str) -> list[str]:
    """The words and signs beside a value that math-verify drops, in order; none of an answer that is all words."""
    latex = UPRIGHT.sub(r"\1", latex)
    outside = TEXT.sub(" ", latex)
    if not re.search(r"[0-9\\]|(?<![a-zA-Z])[a-zA-Z](?![a-zA-Z])", outside):
        return []
    found = [re.sub(r"\s", "", text) + power.replace("{", "").replace("}", "") for text, power in TEXT.findall(latex)]
    found += [bare[0].strip() for bare in [BARE_UNIT.search(outside)] if bare]
    found = [PLURAL.sub("", unit.strip(".")) for unit in found if unit and unit not in JOINING]
    return found + [sign for sign in ("\\circ", "°", "\\degree", "\\$", "‰") if sign in latex]


def _letters(latex: str) -> set[frozenset[str]]:
    """The letters of mathematics in it, Greek ones by their names: all, and those without what stands for an answer,
    the left side of ``x = 5`` and the x of ``x > 5``."""
    plain = JOINED.sub(",", UPRIGHT.sub(r" \1 ", ENVIRONMENT.sub(" ", latex)))
    if WORDS.fullmatch(words := TEXT.sub(r"\1", plain)):
        return {_letters_in(words.lower())}
    outside = BARE_UNIT.sub("", TEXT.sub(" ", plain)) if TEXT.sub("", plain).strip() else TEXT.sub(r"\1", plain)
    found = {_letters_in(outside), _letters_in(LEFT_SIDE.sub("", outside))}
    return found | {frozenset(letters - {"x"}) for letters in found if INEQUALITY.search(outside)}


def _letters_in(latex: str) -> frozenset[str]:
    named = (unicodedata.name(c, "").split() for c in latex if not c.isascii())
    names = {n[-1].title() if "CAPITAL" in n else n[-1].lower() for n in named if n[:1] == ["GREEK"]}
    return frozenset(names | {greek or latin for greek, latin in LETTER.findall(latex) if greek or latin})


def _marks(latex: str) -> set[tuple[tuple[str, int], ...]]:
    r"""What math-verify reads past, or takes for something else, with the number of commas, of which ``a \pm b`` and
    ``x > 5`` save one."""
    text = TEXT.sub(lambda text: "," if text[1].strip() in JOINING else " ", latex.replace("\\prime", "'"))
    text = THOUSANDS.sub("", DEGREE.sub("", JOINED.sub(",", text)))
    marks = Counter(MARK.findall(text))
    commas = {text.count(","), LEFT_SIDE.sub("", text).count(",")}
    commas |= {n + 1 for n in commas if "\\pm" in text or INEQUALITY.search(text)}
    return {tuple(sorted({**marks, ",": count}.items())) for count in commas}
