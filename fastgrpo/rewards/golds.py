r"""Whether a data set's answers can be met: a verifier judges each against itself."""

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastgrpo.rewards.pool.load import load_reward, locate_reward
from fastgrpo.rewards.pool.verifier_pool import VerifierPool

Form = tuple[str, str]
"""What stands before an answer and behind it in a response as a verifier wants it."""
MOST_FORMS = 6
FIRST_CHUNK, LARGEST_CHUNK = 8, 256  # a slow verifier must be noticed before the time is over
LONGEST_DRESSED = 300  # characters; no unit or name makes an answer longer
NUM_SHOWN = 3


@dataclass(frozen=True)
class GoldReport:
    """What became of the different answers of a source that were tried on a verifier."""

    num_tried: int
    unmet: list[str] = field(default_factory=list)  # that are rejected as they stand
    dressed: dict[str, str] = field(default_factory=dict)  # that are met by no plainer spelling -> that spelling

    def unmet_words(self, source: str, reward: str, row_of: Mapping[str, int]) -> str:
        """A sentence about the answers that no response can meet; empty if there are none."""
        if not self.unmet:
            return ""
        return (
            f"{len(self.unmet)} of {self._tried(row_of)} different answers of {source} are rejected by {reward} even "
            f"word for word: {_shown(self.unmet, row_of)}"
        )

    def dressed_words(self, source: str, row_of: Mapping[str, int]) -> str:
        """A sentence about the answers that only their own spelling meets; empty if there are none."""
        if not self.dressed:
            return ""
        gold, plain = next(iter(self.dressed.items()))
        return (
            f"{len(self.dressed)} of {self._tried(row_of)} different answers of {source} are met by their own spelling "
            f"alone: {_shown(list(self.dressed), row_of)}; {plain!r} does not meet {gold!r}"
        )

    def _tried(self, row_of: Mapping[str, int]) -> str:
        return f"{self.num_tried}" + (f" (of {len(row_of)})" if self.num_tried < len(row_of) else "")


def _shown(golds: Sequence[str], row_of: Mapping[str, int]) -> str:
    more = f" and {len(golds) - NUM_SHOWN} more" if len(golds) > NUM_SHOWN else ""
    return ", ".join(f"row {row_of[gold]} {gold[:60]!r}" for gold in golds[:NUM_SHOWN]) + more


def first_rows(answers: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Each different answer and the first row that has it; an empty one is none."""
    found: dict[str, int] = {}
    for answer, row in answers:
        if answer:
            found.setdefault(answer, row)
    return found


def forms_for(reward: str, function: Callable[..., Any] | None, pool: VerifierPool) -> tuple[Form, ...]:
    """The forms in which the pool's reward wants an answer, as its known answers show them; none where answers cannot
    be tried on it: without known answers it may be slow, cost money, or want a response that nobody can make up.

    ``function`` is the reward as this process has it, if it does; one of this package it may import.
    """
    signature = pool.signature
    if signature.names or signature.is_async or signature.whole_groups:
        return ()
    if function is None and reward.startswith("fastgrpo."):
        function = load_reward(*locate_reward(reward))
    found: dict[Form, None] = {}
    for response, answer, is_right in getattr(function, "known_answers", ()):
        before, answer, behind = response.rpartition(answer)
        if is_right and answer:
            found[before, behind] = None
    return tuple(found)[:MOST_FORMS]


def try_golds(pool: VerifierPool, golds: Sequence[str], seconds: float, forms: Sequence[Form]) -> GoldReport:
    """What the pool's verifier says of responses that hold nothing but these answers, as many as there is time for."""
    until = time.monotonic() + seconds
    unmet: list[str] = []
    dressed: dict[str, str] = {}
    start, size = 0, FIRST_CHUNK
    while start < len(golds) and time.monotonic() < until:
        chunk = golds[start : start + size]
        rejected = set(_rejected(pool, [(gold, gold) for gold in chunk], forms))
        unmet += [gold for gold in chunk if (gold, gold) in rejected]
        plainer = [(plain, gold) for gold in chunk if (gold, gold) not in rejected and (plain := plain_form(gold))]
        dressed |= {gold: plain for plain, gold in _rejected(pool, plainer, forms)}
        start, size = start + len(chunk), min(2 * size, LARGEST_CHUNK)
    return GoldReport(start, unmet, dressed)


def _rejected(pool: VerifierPool, pairs: list[tuple[str, str]], forms: Sequence[Form]) -> list[tuple[str, str]]:
    """Those of these (given, gold) that are rejected in every form."""
    for before, behind in forms:
        verdicts = pool.score([(f"{before}{given}{behind}", gold) for given, gold in pairs])
        pairs = [pair for pair, verdict in zip(pairs, verdicts, strict=True) if not verdict.correct]
    return pairs


_WRAPPINGS = [
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"\$(?P<inside>[^$]+)\$",
        r"\\\((?P<inside>.+)\\\)",
        r"\\\[(?P<inside>.+)\\\]",
        r"(?i:(?:the |final )*answer(?: is:|:| is))\s*(?P<inside>.+)",
        r"[A-Za-z]\w*\s*=\s*(?P<inside>[^=]+)",
        r"\\\$\s*(?P<inside>.+)",
        r"(?P<inside>.+?)(?:\\\\|\s*\\?%|\.)",
        r"(?P<inside>.+?)\s*\([A-Za-z][A-Za-z ]*\)",
        r"(?P<inside>.+?)(?:\\[ ,;!]|\s|~)*\\(?:text|mathrm|mbox|textrm)\s*\{[^{}]*\}(?:\^\{?\d\}?)?",
        r"(?P<inside>[-+]?\d[\d.,/]*)\s+[A-Za-z][A-Za-z ]*",
    )
]
_THOUSANDS = re.compile(r"[-+]?\d{1,3}(?:(?:,|\{,\}|,\\!)\d{3})+(?:\.\d+)?")
_NUMBER = re.compile(r"(?P<sign>[-+]?)0*(?P<whole>\d+)(?:\.(?P<part>\d*?)0*)?")


def plain_form(gold: str) -> str:
    r"""The answer as a model would box it: without a unit, a name, delimiters, separators, zeros that say nothing
    (``x=5``, ``5\text{ cm}``, ``1,234``, ``0.50``). Empty where it is plain already, and for long ones."""
    if len(gold) > LONGEST_DRESSED:
        return ""
    plain, before = gold.strip(), None
    while plain != before:
        before = plain
        for wrapping in _WRAPPINGS:
            if match := wrapping.fullmatch(plain):
                plain = match["inside"].strip()
    if _THOUSANDS.fullmatch(plain):
        plain = re.sub(r"\{,\}|,\\!|,", "", plain)
    if match := _NUMBER.fullmatch(plain):
        sign = match["sign"].replace("+", "")
        plain = f"{sign}{match['whole']}" + (f".{match['part']}" if match["part"] else "")
    return "" if plain == gold else plain
