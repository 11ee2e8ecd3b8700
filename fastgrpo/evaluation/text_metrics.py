"""Measures of responses besides their verdicts: length, whether they are cut, boxed or repeating, and more.

SimpleRL-Zoo's definitions are those of hkust-nlp/simpleRL-reason, examples/simplelr_math_eval/sh/collect_results.py,
and JustRL's are those of thunlp/JustRL, evals/grade.py. We count the tokens that the model sampled; SimpleRL-Zoo's
script encodes the lower-cased text of the response again. Every measure takes time linear in a response's length.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from fastgrpo.evaluation.records import Judged

KEYWORDS = ("recheck", "rethink", "try again", "wait", "alternatively", "retry", "however")
_WINDOW = 10  # characters
_SIMILAR = 0.85  # Jaccard
_SHORTEST_PIECE = 20  # characters of a sentence or line that is compared with the one before it
_BRACES = re.compile(r"(\\boxed)?\{|\}")
_CHINESE = re.compile("[\u4e00-\u9fff]")

DEFINITIONS = {
    "tokens": "mean number of tokens sampled, the end token included",
    "truncated": "share of responses cut at the token limit (clip ratio, SimpleRL-Zoo)",
    "stopped_tokens": "mean tokens of the responses that ended by themselves (average stopped length, SimpleRL-Zoo)",
    "stopped": "share of responses that ended by themselves (stop ratio, SimpleRL-Zoo)",
    "boxed": "share of responses with a complete \\boxed{} (box ratio, SimpleRL-Zoo)",
    "unboxed_responses": "number of responses without the letters 'boxed' (format_error_rollouts, JustRL)",
    "repeating": "share of responses in which a stretch repeats the one before it (repeat ratio, SimpleRL-Zoo)",
    "right_tokens": "mean tokens of right responses (SimpleRL-Zoo)",
    "wrong_tokens": "mean tokens of wrong responses (SimpleRL-Zoo)",
    "keywords": f"mean occurrences in a response of any of: {', '.join(KEYWORDS)} (SimpleRL-Zoo)",
    "keyword_counts": "occurrences of each keyword in all responses",
    "distinct_4": "distinct share of the four-word sequences in a problem's responses, mean over problems (JustRL)",
}


@dataclass(frozen=True)
class TextMetrics:
    """The measures over all responses to one benchmark, defined in `DEFINITIONS`. A mean of no response is None."""

    tokens: float
    truncated: float
    stopped_tokens: float | None
    stopped: float
    boxed: float
    unboxed_responses: int
    repeating: float
    right_tokens: float | None
    wrong_tokens: float | None
    keywords: float
    keyword_counts: dict[str, int]
    distinct_4: float


def text_metrics(judged: Sequence[Judged]) -> TextMetrics:
    """The measures of these responses. Raises ValueError if there are none."""
    if not judged:
        raise ValueError("there is no response to measure.")
    counts = keyword_counts(one.text for one in judged)
    by_problem: dict[int, list[str]] = defaultdict(list)
    for one in judged:
        by_problem[one.problem].append(one.text)
    return TextMetrics(
        tokens=float(np.mean([one.num_tokens for one in judged])),
        truncated=float(np.mean([one.finish_reason == "length" for one in judged])),
        stopped_tokens=_mean(one.num_tokens for one in judged if one.finish_reason == "stop"),
        stopped=float(np.mean([one.finish_reason == "stop" for one in judged])),
        boxed=float(np.mean([has_box(one.text) for one in judged])),
        unboxed_responses=sum("boxed" not in one.text for one in judged),
        repeating=float(np.mean([is_repeating(one.text) for one in judged])),
        right_tokens=_mean(one.num_tokens for one in judged if one.correct),
        wrong_tokens=_mean(one.num_tokens for one in judged if not one.correct),
        keywords=sum(counts.values()) / len(judged),
        keyword_counts=counts,
        distinct_4=float(np.mean([distinct_share(texts) for texts in by_problem.values()])),
    )


def has_box(text: str) -> bool:
    """Whether the text has a ``\\boxed{...}`` that closes.

    So does SimpleRL-Zoo's `extract_last_boxed`, except that it knows only three levels of braces inside the box.
    """
    boxes: list[bool] = []  # for each open brace, whether it belongs to a box
    for brace in _BRACES.finditer(text):
        if brace[0] != "}":
            boxes.append(brace[1] is not None)
        elif boxes and boxes.pop():
            return True
    return False


def keyword_counts(texts: Iterable[str]) -> dict[str, int]:
    """Keyword -> its occurrences in the lower-cased texts, also inside words: "waiting" contains "wait".

    SimpleRL-Zoo's `calculate_avg_tokens_and_keywords` counts in the same way.
    """
    counts = dict.fromkeys(KEYWORDS, 0)
    for text in texts:
        lower = text.lower()
        for keyword in KEYWORDS:
            counts[keyword] += lower.count(keyword)
    return counts


def is_repeating(text: str) -> bool:
    """Whether two neighbouring stretches of a lower-cased text are alike: Jaccard similarity of at least 0.85.

    Source: SimpleRL-Zoo's `is_repeat`. The stretches are, in this order: windows of 10 characters, side by side; lines;
    sentences that end in "."; sentences that end in "。". Lines and sentences of fewer than 20 characters are left out.
    A text without a line break is not searched for sentences, and one without "." is not searched for "。". Two
    stretches are compared as sets of words if they contain both a space and a line break, or else as sets of
    characters: so two long lines that use the same letters are alike.

    There are two differences. Chinese stretches are compared as characters, not as jieba's words. A text whose lines
    are all shorter than 20 characters does not repeat; there the script raises an error and counts it as a repetition.
    """
    text = text.lower()
    windows = [text[start : start + _WINDOW] for start in range(0, len(text) - len(text) % _WINDOW, _WINDOW)]
    if _has_alike_neighbours(windows):
        return True
    for mark in ("\n", ".", "。"):
        pieces = text.split(mark)
        if len(pieces) == 1:
            return False
        if _has_alike_neighbours([piece for piece in pieces if len(piece) >= _SHORTEST_PIECE]):
            return True
    return False


def _has_alike_neighbours(stretches: Sequence[str]) -> bool:
    return any(_are_alike(one, other) for one, other in pairwise(map(_parts, stretches)))


def _parts(stretch: str) -> frozenset[str]:
    in_words = " " in stretch and "\n" in stretch and not _CHINESE.search(stretch)
    return frozenset(stretch.split() if in_words else stretch)


def _are_alike(one: frozenset[str], other: frozenset[str]) -> bool:
    """Whether two stretches are alike. Two of white space are; there the script divides by zero and counts that."""
    together = len(one | other)
    return len(one & other) >= _SIMILAR * together


def distinct_share(texts: Sequence[str], length: int = 4) -> float:
    """The distinct share of all sequences of `length` words (split at white space) in the texts; 0.0 if there are none.

    Source: JustRL's `get_diverse_score`, called distinct_4gram in its results.
    """
    ids: dict[str, int] = {}
    per_text = [
        np.array([ids.setdefault(word, len(ids)) for word in text.split()], dtype=np.int64)  # words as numbers
        for text in texts
    ]
    per_text = [words for words in per_text if len(words) >= length]
    if not per_text:
        return 0.0
    grams = np.concatenate([words[: len(words) - length + 1] for words in per_text])
    for offset in range(1, length):
        following = np.concatenate([words[offset : len(words) - length + 1 + offset] for words in per_text])
        # The gram so far and its next word are numbered anew together: the numbers always fit into 64 bits.
        grams = np.unique(grams * len(ids) + following, return_inverse=True)[1].reshape(-1)
    return (int(grams.max()) + 1) / len(grams)


def _mean(values: Iterable[int]) -> float | None:
    listed = list(values)
    return float(np.mean(listed)) if listed else None
