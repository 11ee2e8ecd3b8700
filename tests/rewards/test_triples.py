import math
import random
import re
from pathlib import Path

import pytest

from tests.rewards.answers import GENERATORS
from tests.rewards.demanded_forms import RESPONSES
from tests.rewards.triples import Tally, cell, judge, table, triples

DOC = Path(__file__).parents[2] / "docs" / "verifiers.md"


def cells(markdown: str) -> dict[tuple[str, str], str]:
    """(category, verifier) -> what the table of that shape says."""
    rows = [[cell.strip() for cell in line.strip("| \n").split("|")] for line in markdown.splitlines() if "|" in line]
    names = [name.strip("`") for name in rows[0]]
    return {
        (row[0], name): text for row in rows[2:] for name, text in zip(names[-len(row) + 1 :], row[1:], strict=True)
    }


def table_of_the_doc() -> str:
    lines = DOC.read_text().splitlines()
    start = next(
        i for i, line in enumerate(lines) if line.startswith("|") and "`strict_boxed` | `dapo_minerva`" in line
    )
    end = next(i for i in range(start, len(lines)) if not lines[i].startswith("|"))
    return "\n".join(lines[start:end]) + "\n"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_table_of_the_doc_is_what_a_twentieth_of_its_triples_give():
    """20 of 400 a category, within four standard errors; `python -m tests.rewards.triples` prints the whole again."""
    found, doc = cells(table(judge(triples(500), workers=2))), cells(table_of_the_doc())
    assert found.keys() == doc.keys()
    for place, text in found.items():
        assert ("/" in text) == ("/" in doc[place]), f"{place}: one of them has accepted a different answer"
        recall, published = (float(t.split("/")[0]) / 100 for t in (text, doc[place]))
        assert abs(recall - published) <= 4 * math.sqrt(published * (1 - published) / 20) + 0.006, place


def test_the_doc_has_every_verifier_and_category():
    found = cells(table_of_the_doc())
    assert {name for _, name in found} == set(RESPONSES)
    assert {category for category, _ in found} == {*GENERATORS, "all"}


def test_no_verifier_accepts_a_different_answer_and_recall_is_about_what_the_doc_says():
    """A sample of the table's triples: its first ones."""
    names = ("mathd_or_sympy", "math_verify")
    found = judge(triples(150), workers=2, names=names)
    doc = cells(table_of_the_doc())
    for name in names:
        assert found[name]["all"].number == 150
        assert found[name]["all"].accepted_different == 0
        assert 100 * found[name]["all"].recall == pytest.approx(float(doc["all", name].split("/")[0]), abs=7)
        for category in GENERATORS:
            if doc[category, name] in ("0", "100"):
                assert cell(found[name][category]) == doc[category, name]


def test_triples_have_three_different_texts_and_as_many_of_each_category():
    found = triples(1000)
    assert all(len({t.answer, t.equivalent, t.different}) == 3 for t in found)
    assert {category: sum(t.category == category for t in found) for category in GENERATORS} == dict.fromkeys(
        GENERATORS, 1000 // len(GENERATORS)
    )
    assert triples(100) == found[:100]
    assert triples(100, seed=1) != found[:100]


def value(text: str) -> float | None:
    """Of an answer that is a plain number or fraction, by Python: an oracle that knows nothing of verifiers."""
    text = re.sub(r"\\[dt]?frac\{(-?\d+)\}\{(\d+)\}", r"\1/\2", text.replace("$", "").replace(" ", ""))
    match = re.fullmatch(r"(-?[\d.]+?)\.?(?:/(\d+))?", text)
    return float(match[1]) / float(match[2] or 1) if match else None


@pytest.mark.parametrize("category", ["integers", "decimals", "fractions", "unreduced fractions"])
def test_equivalent_forms_have_the_answers_value_and_different_ones_do_not(category: str):
    rng = random.Random(0)
    compared = 0
    for _ in range(300):
        forms = GENERATORS[category](rng)
        wanted = value(forms.answer)
        assert wanted is not None
        for form in forms.equivalent:
            compared += value(form) is not None
            assert value(form) in (None, pytest.approx(wanted))
        assert all(value(form) != pytest.approx(wanted) for form in forms.different)
    assert compared >= 300


def test_a_cell_is_recall_and_then_precision_where_it_is_not_perfect():
    assert cell(Tally(10, 5, 0)) == "50"
    assert cell(Tally(10, 0, 0)) == "0"
    assert cell(Tally(10, 9, 1)) == "90 / 90.0"
