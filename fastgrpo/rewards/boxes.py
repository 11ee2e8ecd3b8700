r"""The answer in a ``\boxed{...}``."""

import re

BOX = "\\boxed"
BRACE = re.compile(r"[{}]")


def last_boxed(text: str) -> str | None:
    r"""What stands in the last ``\boxed{...}``; None if there is none, or if the last one never closes.

    Braces nest; a backslash does not escape them. Of nested boxes the innermost counts, because it starts last. A last
    ``\boxed 42`` without braces is no answer, whatever stands before it. The text is read once.

    Source: ``extract_answer`` of ChenxinAn-fdu/POLARIS deepscaler/rewards/math_utils/utils.py, which thunlp/JustRL
    evaluates with. It also opens an ``\fbox``, from which it then takes nothing.
    """
    start = text.rfind(BOX)
    if start < 0 or not text.startswith("{", start + len(BOX)):
        return None
    start += len(BOX) + 1
    end = closing_brace(text, start)
    return text[start:end] if end >= 0 else None


def answer_of(gold: str) -> str:
    r"""The answer of a data set, out of its box if it comes in one (AIME24's gold is ``\boxed{204}``)."""
    boxed = last_boxed(gold)
    return gold if boxed is None else boxed


def closing_brace(text: str, start: int) -> int:
    """Position of the brace that closes the one just before ``start``, or -1."""
    depth = 1
    for brace in BRACE.finditer(text, start):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return brace.start()
    return -1
