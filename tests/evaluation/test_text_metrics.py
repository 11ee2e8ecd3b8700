"""The text measures against worked examples and second implementations of their definitions."""

import random
import re
from itertools import pairwise

import pytest

from fastgrpo.evaluation.records import Judged
from fastgrpo.evaluation.text_metrics import (
    DEFINITIONS,
    KEYWORDS,
    TextMetrics,
    distinct_share,
    has_box,
    is_repeating,
    keyword_counts,
    text_metrics,
)

JUDGED = [
    Judged(0, 0, "Wait, however. \\boxed{4}", 10, "stop", True),
    Judged(0, 1, "Wait. Waiting for the answer to boxed{5}", 100, "length", False),
    Judged(1, 0, "a b c d a b c d and \\boxed{6}", 30, "stop", False),
    Judged(1, 1, "no answer", 40, "stop", False),
]


def test_measures_of_four_responses():
    found = text_metrics(JUDGED)
    assert found.tokens == 45
    assert (found.truncated, found.stopped, found.stopped_tokens) == (0.25, 0.75, pytest.approx(80 / 3))
    assert (found.boxed, found.unboxed_responses) == (
        0.5,
        1,
    )  # a box without its backslash is none, but has the letters
    assert (found.right_tokens, found.wrong_tokens) == (10, pytest.approx(170 / 3))
    assert found.keywords == 1
    assert found.keyword_counts == {**dict.fromkeys(KEYWORDS, 0), "wait": 3, "however": 1}
    assert found.repeating == 0
    # Problem 0: 1 word sequence of 4 in neither the first (3 words) nor more than 3 in the second (7 words).
    assert found.distinct_4 == pytest.approx((4 / 4 + 6 / 7) / 2)


def test_every_measure_has_a_definition():
    assert DEFINITIONS.keys() == set(TextMetrics.__dataclass_fields__)


def test_mean_of_no_response_is_none():
    found = text_metrics([Judged(0, 0, "x", 9, "length", False)])
    assert (found.stopped_tokens, found.right_tokens, found.wrong_tokens) == (None, None, 9)


def test_nothing_to_measure_is_an_error():
    with pytest.raises(ValueError, match="no response"):
        text_metrics([])


def test_keywords_are_counted_inside_of_words_and_in_any_case():
    counts = keyword_counts(["WAIT awaits; Rechecked, try again", "Alternatively retry, rethinking"])
    assert counts == {
        "recheck": 1,
        "rethink": 1,
        "try again": 1,
        "wait": 2,
        "alternatively": 1,
        "retry": 1,
        "however": 0,
    }


@pytest.mark.parametrize(
    "text, repeats",
    [
        ("abcdefghij" * 2, True),  # two windows of 10
        ("abcdefghij", False),  # one
        ("ABCDEFGHIJabcdefghij", True),  # in any case
        ("abcdefghijklmnopqrst", False),
        ("abcdefghij" + "-" * 20, True),
        ("abcdefghij" + "-" * 19, False),  # what is left of a window is not looked at
        ("x" * 9, False),
    ],
)
def test_neighbouring_windows_of_ten_characters_repeat(text: str, repeats: bool):
    assert is_repeating(text) == repeats


def spaced(*lines: str) -> str:
    """Lines whose ten-character windows never meet their like, with a comma's worth of shift between them."""
    return "\n".join(lines)


LINE, OTHER = "the quick brown fox jumps over", "1234567890;:!?=+-*/<>[]{}"


def test_neighbouring_lines_of_twenty_characters_repeat():
    assert not is_repeating(spaced(LINE, OTHER))
    assert is_repeating(spaced(LINE, OTHER, OTHER))
    assert is_repeating(spaced(LINE, "short", LINE[::-1])), "a short line between them does not part them"
    assert not is_repeating(spaced(LINE, OTHER, LINE))


def test_sentences_are_only_looked_at_in_a_text_with_a_line_break():
    sentences = f"{LINE}.{LINE[::-1]}."
    assert not is_repeating(sentences)
    assert is_repeating(f"{sentences}\n")


def test_text_of_short_lines_alone_does_not_repeat():
    """The published script fails on it, and counts the failure."""
    assert not is_repeating("so x = 1\nor y = 2\n")


def repeats_by_definition(text: str) -> bool:
    text = text.lower()

    def alike(one: str, other: str) -> bool:
        a, b = (set(s.split() if " " in s and "\n" in s else s) for s in (one, other))
        return not (a | b) or len(a & b) / len(a | b) >= 0.85

    windows = re.findall(r"(?s).{10}", text) if len(text) > 10 else []
    if any(alike(one, other) for one, other in pairwise(windows)):
        return True
    for mark in "\n.。" if len(text) > 10 else "":
        if mark not in text:
            break
        long = [piece for piece in text.split(mark) if len(piece) > 19]
        if any(alike(one, other) for one, other in pairwise(long)):
            return True
    return False


def test_repeats_as_a_second_reading_of_the_definition_says():
    generator, found = random.Random(0), []
    for _ in range(3000):
        letters = generator.sample("abcdefghijklmnopqrstuvwxyzABCDEF0123456789", generator.randint(5, 30)) + list(
            " \n.。"
        )
        text = "".join(generator.choices(letters, k=generator.randint(0, 130)))
        found.append(is_repeating(text))
        assert found[-1] == repeats_by_definition(text), repr(text)
    assert 0.02 < sum(found) / len(found) < 0.98


def test_chinese_is_compared_by_characters():
    assert is_repeating("我们先把两边同时除以二得到结果" + "\n" + "再来一次 " * 6)
    assert not is_repeating("我们先把两边同时除以二得到结果等于七十三")
    assert is_repeating("他们 走\n过来了吗呢" + "呢吗 了\n来过走们他"), "the same characters, and no word in common"


@pytest.mark.parametrize(
    "text, has",
    [
        ("\\boxed{4}", True),
        ("\\boxed{}", True),
        ("\\boxed{\\frac{1}{\\sqrt{2}}}", True),
        ("\\boxed{" + "{" * 9 + "}" * 10, True),
        ("\\boxed{4", False),
        ("\\boxed 4", False),
        ("boxed{4}", False),
        ("\\boxed{4} and then \\boxed{5", True),
        ("{ \\boxed{4} ", True),
        ("} \\boxed{4} }", True),
        ("\\boxed{ {4} ", False),
    ],
)
def test_a_box_counts_where_it_closes(text: str, has: bool):
    assert has_box(text) == has


def test_distinct_share_counts_sequences_of_four_words():
    generator = random.Random(1)
    for _ in range(200):
        texts = [" ".join(generator.choices("abc", k=generator.randint(0, 12))) for _ in range(3)]
        grams = [tuple(words[i : i + 4]) for words in map(str.split, texts) for i in range(len(words) - 3)]
        assert distinct_share(texts) == pytest.approx(len(set(grams)) / len(grams) if grams else 0)


def test_no_sequence_of_four_words_is_a_share_of_zero():
    assert distinct_share(["three words only", ""]) == 0


@pytest.mark.timeout(60)
@pytest.mark.parametrize("piece", ["\\boxed{", "{", "a\n", ".", "wait ", "\\frac", " ", "数"])
def test_a_million_hostile_characters_are_measured(piece: str):
    found = text_metrics([Judged(0, 0, piece * (1_000_000 // len(piece)), 5, "length", False)])
    assert found.tokens == 5 and found.repeating == 1
