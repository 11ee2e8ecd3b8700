r"""Verdicts on answers in dress beside those of the verifiers' sources.

``dressed_answers.tsv`` has five columns: the verdicts of the sources and ours, each for mathd_or_sympy, math_verify and
simplerl_mix; what stands in the box; the gold answer; the family. The sources that ran are ``grade_answer_verl`` of
thunlp/JustRL evals/utils.py with pylatexenc 2.11 (its graders are DeepScaleR's to the letter), verl's call of
math-verify 0.9.0, and ``extract_answer`` of hkust-nlp/simpleRL-reason (v1) before the same library's ``parse`` and
``verify``. Their code is not in this tree.
"""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.rewards.demanded_forms import verifier

FILE = Path(__file__).with_name("dressed_answers.tsv")
COMPARED = ("mathd_or_sympy", "math_verify", "simplerl_mix")


OTHER_VALUES = {
    "1e-7",
    "12345678901234567890.5",
    "\\overline{7}",
    "\\overline{(1,2)}",
    "\\widehat{7}",
    "\\widehat{\\frac{9}{b-5}}",
}
# The source takes 5 over 2 for the number 52, behind which a period is a decimal's.
PERIOD_BEHIND_A_BINOMIAL = {"\\binom{5}{2}.", "\\binom{5}{2} ."}


class Dressed(NamedTuple):
    source: str
    ours: str
    answer: str
    gold: str
    family: str


ROWS = [Dressed(*line.split("\t")) for line in FILE.read_text().splitlines()[1:]]


@pytest.mark.parametrize(
    ("place", "every"),
    [(0, 1), (1, 4), (2, 4), *(pytest.param(place, 1, marks=pytest.mark.slow) for place in (1, 2))],
)
def test_dress_is_judged_as_by_the_source_or_as_the_table_says(place: int, every: int):
    judge = verifier(COMPARED[place])
    found = [(row, "FT"[judge(f"\\boxed{{{row.answer}}}", row.gold)]) for row in ROWS[::every]]
    assert not [(row, letter) for row, letter in found if letter != row.ours[place]]


def test_deepscaler_and_prime_union_say_what_their_parts_say():
    deepscaler, prime_union = verifier("deepscaler"), verifier("prime_union")
    for row in ROWS[::10]:
        response = f"</think>\\boxed{{{row.answer}}}"
        assert deepscaler(response, row.gold) == (row.ours[0] == "T"), row
        assert prime_union(response, row.gold) == ("T" in row.ours[:2]), row


def test_the_table_has_every_family_and_both_verdicts():
    assert len(ROWS) == len({(row.answer, row.gold) for row in ROWS}) > 500
    assert all(set(row.source + row.ours) <= {"T", "F"} and len(row.source) == len(row.ours) == 3 for row in ROWS)
    verdicts = Counter(row.source[0] for row in ROWS)
    assert min(verdicts.values()) > 100
    assert sum(row.source != row.ours for row in ROWS) < 50


def test_where_ours_differs_mathematics_is_on_our_side():
    """A difference is either a right answer that the source rejects, or another value that it accepts."""
    for row in ROWS:
        more_accept = row.ours.count("T") > row.source.count("T")
        if row.source != row.ours and row.answer not in PERIOD_BEHIND_A_BINOMIAL:
            assert more_accept != (row.family == "another value" or row.answer in OTHER_VALUES), row
