"""The answer in a response, as Qwen's evaluation toolkit extracts and normalises it."""

import re

from fastgrpo.rewards.grading.digits import ascii_digits

NUMBER = re.compile(r"-?\d*\.?\d+")
MINERVA_PHRASE = ("final answer is $", "$. I hope")  # of Minerva's few-shot prompt
MAX_CHARS = 1000

UNITS = (
    "east degree mph kmph ft deg mile monkey prime ratio rd o gm lb tile per dm lt gain ab way west t a h men "
    "soldier pie bc excess st inches noon percent by gal kmh c acre rise th sq mark l toy coin gallon profit "
    "minw yr women feet am pm hr square are rupee rounds cubic cc mtr s ohm number day hour minute min second "
    "man woman sec cube mt mp hectare more unit rs kg g month km m cm mm apple liter loss yard pure year "
    "increase decrease d less Surface litre metre meter inch"
)
PHRASES = (
    "m sqaure| m east|sq m|q .|profit of rs|p . m|a .|b .|c .|d .|e .|f .|g .|h .|no change|a . m|π r 2|sq . m|° f|"
    "cu cm|v â € ™|sq inch|∏ cm ³|cu . m|cm 2|rs .|pi sq m|s ."
)
ALL_UNITS = [unit + plural for unit in PHRASES.split("|") + UNITS.split() for plural in ("", "s")]
# A point in a phrase matches any character, as in the original.
UNIT = [re.compile(rf"(^|\W){unit}($|\W)") for unit in ALL_UNITS]

REPLACED = (
    ("\\!", ""),
    ("bmatrix", "pmatrix"),
    ("tfrac", "frac"),
    ("dfrac", "frac"),
    ("\\neq", "\\ne"),
    ("\\leq", "\\le"),
    ("\\geq", "\\ge"),
    ("\\left", ""),
    ("\\right", ""),
    ("\\{", "{"),
    ("\\}", "}"),
)
MONEY_AND_DEGREES = ("^{\\circ}", "^\\circ", "\\$", "$", "\\(", "\\)")
NAMES = ("x=", "y=", "z=", "x\\in", "y\\in", "z\\in", "x\\to", "y\\to", "z\\to")

ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
ONES += " eighteen nineteen"
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
SMALL = {word: value for value, word in enumerate(ONES.split())}
SMALL |= {word: 10 * value for value, word in enumerate(TENS.split(), 2)}
LARGE = {"thousand": 10**3, "million": 10**6, "billion": 10**9}


def extract_answer(response: str) -> str:
    """The normalised answer: from the last box, or after "answer is", or the last number; empty if there is none.

    Source: ``extract_answer`` and ``strip_string`` of hkust-nlp/simpleRL-reason
    verl/utils/reward_score/qwen_math_eval_toolkit/parser.py, for the data name "math". Ours reads number words only if
    they are the whole answer; the original takes them from any text. Ours removes no units from an answer of more than
    1,000 characters.
    """
    answer = re.sub(r"\n\s*", "", _raw_answer(response.replace("ки", "")))
    return normalised(answer.removeprefix(":").removesuffix(".").removesuffix("/"))


def _raw_answer(response: str) -> str:
    if all(part in response for part in MINERVA_PHRASE):
        return response.split(MINERVA_PHRASE[0], 1)[1].split(MINERVA_PHRASE[1], 1)[0].strip()
    if "boxed" in response:
        return _boxed(response.rsplit("boxed", 1)[1])
    for mark in ("he answer is", "final answer is"):
        if mark in response:
            return response.rsplit(mark, 1)[1].strip()
    if "答案是" in response:
        return response.split("答案是")[1].strip().split("\n\n")[0].strip()
    numbers = NUMBER.findall(response.replace(",", ""))
    return numbers[-1] if numbers else ""


def _boxed(rest: str) -> str:
    """The content of a box; all of the text if the box never closes, and up to the next dollar if it has no braces."""
    from fastgrpo.rewards.grading.boxes import closing_brace

    if not rest.startswith("{"):
        return rest.split("$")[0].strip()
    end = closing_brace(rest, 1)
    return rest[1:] if end < 0 else rest[1:end]


def normalised(answer: str) -> str:
    """The answer without units, money, percent, degrees, spaces and names, and with one form of fractions and roots."""
    text = ascii_digits(answer).strip().replace("\n", "").rstrip(".")
    text = re.sub(r"\\begin\{array\}\{.*?\}", r"\\begin{pmatrix}", text).replace("\\end{array}", "\\end{pmatrix}")
    for old, new in REPLACED:
        text = text.replace(old, new)
    text = _without_units(text)
    for sign in MONEY_AND_DEGREES:
        text = text.replace(sign, "")
    text = re.sub(r"\\text\{(.*?)\}", r"\1", _digits_of_words(text))
    for name in NAMES:
        text = text.replace(name, "")
    text = text.replace("\\emptyset", "{}").replace("(-\\infty,\\infty)", "\\mathbb{R}")
    text = text.replace("\\%", "").replace("%", "").replace(" .", " 0.").replace("{.", "{0.")
    text = text.replace("infinity", "\\infty")
    if "\\infty" not in text:
        text = text.replace("inf", "\\infty")
    text = re.sub(r"\\mbox\{.*?\}", "", text.replace("and", "").replace("\\mathbf", ""))
    if "j" in text and "i" not in text:
        text = text.replace("j", "i")
    text = re.sub(r"(\d)\.0*($|[^\d])", r"\1\2", text)
    return _fractions(_without_name("0" + text if text.startswith(".") else text))


def _without_units(text: str) -> str:
    if len(text) > MAX_CHARS:
        return text
    text = re.sub(r"\\text\{.*?\}$", "", text).strip() or text
    for _ in range(2):
        for unit in UNIT:
            text = unit.sub(r"\1\2", text) or text
    return text


def _without_name(text: str) -> str:
    sides = text.split("=")
    return sides[1] if len(sides) == 2 and len(sides[0]) <= 2 else text


def _fractions(text: str) -> str:
    text = re.sub(r"\\sqrt(\w+)", r"\\sqrt{\1}", text).replace(" ", "")
    text = re.sub(r"\\frac([^{])([^{])", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac([^{])\{", r"\\frac{\1}{", text)
    slashed = re.fullmatch(r"(0|-?[1-9]\d*|[^/]*sqrt[^/]*)/(0|-?[1-9]\d*|[^/]*sqrt[^/]*)", text)
    return f"\\frac{{{slashed[1]}}}{{{slashed[2]}}}" if slashed else text


def _digits_of_words(text: str) -> str:
    """Digits for number words ("forty-two" becomes "42"), and 42 for 042; a text with anything else stays as it is."""
    if text.isascii() and text.isdecimal() and len(text) <= MAX_CHARS:
        return str(int(text))
    words = text.lower().replace("-", " ").replace(" and ", " ").split()
    if not words or len(words) > 20 or any(w not in SMALL and w not in LARGE and w != "hundred" for w in words):
        return text
    total = part = 0
    for word in words:
        if word in SMALL:
            part += SMALL[word]
        elif word == "hundred":
            part = max(part, 1) * 100
        else:
            total, part = total + max(part, 1) * LARGE[word], 0
    return str(total + part)
