r"""The answer in a ``\boxed{...}``."""

import re

BOX = "\\boxed"
BRACE = re.compile(r"[{}]")


def last_boxed(text: str) -> str | None:
    r"""The content of the last ``\boxed{...}``; None if there is none, or if the last one never closes.

    Braces nest, and a backslash does not escape them. Of nested boxes the innermost counts, because it starts last. If
    the last box has no braces (``\boxed 42``), there is no answer, whatever is before it. The text is read once.

    Source: ``extract_answer`` of ChenxinAn-fdu/POLARIS deepscaler/rewards/math_utils/utils.py, which thunlp/JustRL
    uses in its evaluation. The original also looks for ``\fbox``, from which it never gets an answer.
    """
    start = text.rfind(BOX)
    if start < 0 or not text.startswith("{", start + len(BOX)):
        return None
    start += len(BOX) + 1
    end = closing_brace(text, start)
    return text[start:end] if end >= 0 else None


def answer_of(gold: str) -> str:
    r"""The answer of a data set without its box, if it has one (AIME24's gold is ``\boxed{204}``)."""
    boxed = last_boxed(gold)
    return gold if boxed is None else boxed


def closing_brace(text: str, start: int) -> int:
    """The position of the brace that closes the one just before ``start``, or -1."""
    depth = 1
    for brace in BRACE.finditer(text, start):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return brace.start()
    return -1
