"""The name that was meant."""

from collections.abc import Sequence
from difflib import get_close_matches

MOST = 3


def did_you_mean(name: str, names: Sequence[str]) -> str:
    """``, did you mean a, b or c?``, the nearest first: as a whole, by its beginning, or by a part. Empty where none
    is near."""
    if not name:
        return ""
    beginnings = get_close_matches(name, [n[: len(name)] for n in names])
    found = [*get_close_matches(name, names, MOST), *(n for n in names if n[: len(name)] in beginnings or name in n)]
    found = list(dict.fromkeys(found))[:MOST]
    return f", did you mean {' or '.join(filter(None, (', '.join(found[:-1]), found[-1])))}?" if found else ""
