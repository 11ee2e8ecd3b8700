"""Golds: unwrapped, written out, or refused."""

from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastgrpo.data import load_problems
from fastgrpo.data.answers import answer_text, last_box


@pytest.mark.parametrize(
    "answer, text",
    [
        ('["5"]', "5"),
        ("7\x0c", "7"),  # as texts of PDFs end
        ("\x077\x08", "7"),
        ("1\tan", "1\tan"),
        ('"5" "6"', '"5" "6"'),
        (' ["\\\\boxed{5}"] ', "5"),
        ("['5']", "5"),
        ("[5]", "5"),
        (["5"], "5"),
        ([5], "5"),
        ('"5"', "5"),
        ('["\\\\frac{1}{2}"]', "\\frac{1}{2}"),
        ("[1, 2]", "[1, 2]"),  # an interval
        ("[0,\\frac{1}{2}]", "[0,\\frac{1}{2}]"),
        ("[[1, 2], [3, 4]]", "[[1, 2], [3, 4]]"),
        ("[]", "[]"),
        ("\\{1, 2\\}", "\\{1, 2\\}"),
        ('{"a": 1}', '{"a": 1}'),  # a reward of one's own may read it
        (Decimal("2.50"), "2.5"),
        (Decimal("4.00"), "4"),
        (Decimal("1E+3"), "1000"),
        (1e-7, "0.0000001"),
        (-2.5e-10, "-0.00000000025"),
        (1e22, "10000000000000000000000"),
        (0.1, "0.1"),
        ("1e-7", "1e-7"),  # a text stays what it is
        ("None", ""),
        ("nan", ""),
        (" null ", ""),
        ("\\text{None}", "\\text{None}"),
        ("none", "none"),
        ("x = 1\nu = 2", "x = 1\nu = 2"),
    ],
)
def test_an_answer_is_its_text(answer, text):
    assert answer_text(answer) == text


@pytest.mark.parametrize(
    "answer, says",
    [
        ('["5", "6"]', r"has 2 answers, list \['5', '6'\]"),
        (["5", "6"], "has 2 answers"),
        ([], "no answer"),
        ([["5"]], "must be text or a number, got list"),
        ([None], "no answer"),
        (Decimal("NaN"), "no answer"),
        (float("inf"), "no answer"),
        ({"a": 1}, "must be text or a number, got dict"),
        ("\ud800", "half a surrogate"),
        ("\x0crac{1}{2}", r"holds '\\x0crac': the backslash"),  # "\frac" in a JSON that lacks a backslash
        ("2\times 3", r"holds '\\times'"),
        ("2 \x08inom{5}{2}", "was read as an escape"),
    ],
)
def test_what_no_response_could_match_is_refused(answer, says):
    with pytest.raises(ValueError, match=says):
        answer_text(answer)


def test_the_last_box_that_closes_is_a_solutions_answer():
    assert last_box("\\boxed{1} then \\boxed{\\frac{1}{2}}.") == "\\frac{1}{2}"
    assert last_box("\\boxed{\\{1\\}}") == "\\{1\\}"
    assert last_box("\\boxed 5$, or \\boxed{unclosed") == "5"
    assert last_box("\\boxed{1 \\boxed{2} 3} and \\boxed{4") == "2"
    for long in ("\\boxed{", "\\"):  # which took hours, box by box and backslash by backslash
        assert last_box(long * 100_000) == ""
    assert last_box("\\\\boxed{5}") == "5"  # backslashes doubled once too often
    assert last_box("nothing") == ""


def test_decimals_of_parquet_are_read(tmp_path):
    table = pa.table({"problem": ["A", "B"], "answer": pa.array([Decimal("2.50"), Decimal("-7.00")])})
    pq.write_table(table, tmp_path / "a.parquet")
    assert [p.answer for p in load_problems(str(tmp_path / "a.parquet"), "")] == ["2.5", "-7"]


def test_a_number_of_a_narrow_column_is_as_it_is_written_down(tmp_path):
    table = pa.table({"problem": ["a", "b", "c"], "answer": pa.array([0.1, 2.5, 7], pa.float32())})
    pq.write_table(table, tmp_path / "rows.parquet")
    assert [p.answer for p in load_problems(str(tmp_path / "rows.parquet"), "").problems] == ["0.1", "2.5", "7"]
