"""The published tables: retyped without a slip as far as their averages can tell, and their page as the data say."""

import re
from pathlib import Path

import pytest

from fastgrpo.evaluation.published import PROTOCOLS, TABLES, Row, Table
from fastgrpo.evaluation.published_page import markdown
from fastgrpo.evaluation.same_protocol import same_protocol
from fastgrpo.evaluation.suites import BENCHMARKS, SUITES

ROOT = Path(__file__).parents[2]
JUSTRL = {"temperature": 0.7, "top_p": 0.9, "max_response_tokens": 31744}
NINE = {
    name: {
        **JUSTRL,
        "samples_per_problem": 4 if name in ("MATH-500", "Minerva", "Olympiad-Bench") else 32,
        "num_problems": BENCHMARKS[name].num_problems,
    }
    for name in SUITES["justrl"].protocols
}


def rows_with_average() -> list[tuple[Table, Row]]:
    return [
        (table, row)
        for table in TABLES
        for row in table.rows
        if row.average is not None and all(row.values[i] is not None for i in table.averaged)
    ]


@pytest.mark.parametrize("table, row", rows_with_average(), ids=lambda part: getattr(part, "model", ""))
def test_printed_average_is_the_mean_of_its_columns_unless_noted(table: Table, row: Row):
    mean = sum(row.values[i] or 0 for i in table.averaged) / len(table.averaged)
    is_mean = abs(mean - (row.average or 0)) < 0.5 * 10**-table.digits + 1e-9
    assert is_mean == ("printed average is not the mean" not in row.note)


def test_33_averages_are_checked_and_one_of_them_is_off():
    assert len(rows_with_average()) == 33
    assert [row.model for _, row in rows_with_average() if "printed average" in row.note] == ["DeepScaleR-1.5B-Preview"]


def test_every_row_fills_its_columns_and_every_protocol_is_known():
    for table in TABLES:
        assert {column.protocol for column in table.columns} <= PROTOCOLS.keys()
        for row in table.rows:
            assert len(row.values) == len(table.columns), row.model
            assert row.protocol in {"", *PROTOCOLS}
            assert all(0 <= value <= 100 for value in row.values if value is not None)


def test_columns_of_the_suites_have_their_benchmarks_names():
    names = {column.benchmark for table in TABLES for column in table.columns if column.samples}
    assert names - BENCHMARKS.keys() == {"AMC"}


def test_ten_models_are_before_and_after():
    before, after = (
        next(t for t in TABLES if t.title == f"SimpleRL-Zoo, {when}") for when in ("base models", "after training")
    )
    assert [f"{row.model}, SimpleRL-Zoo" for row in before.rows] == [row.model for row in after.rows]
    assert len(before.rows) == 10
    assert all((a.average or 0) > (b.average or 0) for b, a in zip(before.rows, after.rows, strict=True))


def test_pass_at_k_grows_with_k():
    (table,) = [table for table in TABLES if "pass@k" in table.title]
    for row in table.rows:
        assert list(row.values) == sorted(v for v in row.values if v is not None)


def test_a_run_of_justrls_protocol_meets_justrls_rows_with_their_averages():
    found = same_protocol(NINE)
    averages = {row.model: row.value for row in found if row.benchmark == "average"}
    assert averages["JustRL-DeepSeek-1.5B"] == 54.87 and averages["ProRL-V2"] == 53.08
    assert len(averages) == 10 and len(found) == 10 * 10
    assert {row.value for row in found if (row.model, row.benchmark) == ("JustRL-Nemotron-1.5B", "AMC23")} == {96.02}


def test_a_value_of_another_protocol_is_not_drawn():
    """BroRL's own report stands in JustRL's table, with 16 samples at another temperature."""
    assert not [row for row in same_protocol(NINE) if row.model == "BroRL"]
    prorl = {"temperature": 0.6, "top_p": 0.95, "max_response_tokens": 32768, "samples_per_problem": 16}
    prorl["num_problems"] = 30
    assert {row.model for row in same_protocol({"AIME24": prorl})} == {
        "Nemotron-Research-Reasoning-Qwen-1.5B", "BroRL, +191 steps",
    }  # fmt: skip


@pytest.mark.parametrize(
    "changed",
    [
        {"temperature": 1.0},
        {"top_p": 0.95},
        {"max_response_tokens": 2048},
        {"samples_per_problem": 8},
        {"num_problems": 5},
    ],
)
def test_a_run_that_differs_in_one_setting_meets_no_row(changed: dict[str, float]):
    assert same_protocol({"AIME24": {**NINE["AIME24"], **changed}}) == []


def test_an_average_is_drawn_for_all_of_its_benchmarks_alone():
    fewer = {name: protocol for name, protocol in NINE.items() if name != "AIME24"}
    assert not [row for row in same_protocol(fewer) if row.benchmark == "average"]
    more = {**NINE, "GSM8K": NINE["AIME24"]}
    assert not [row for row in same_protocol(more) if row.benchmark == "average"]


def test_what_a_source_does_not_give_equals_nothing():
    questa = {"temperature": 0.7, "top_p": 0.95, "max_response_tokens": None, "samples_per_problem": 32}
    assert same_protocol({"AIME24": {**questa, "num_problems": 30}}) == []


def test_page_in_the_docs_is_the_data():
    page = (ROOT / "docs" / "published.md").read_text(encoding="utf-8")
    assert page == markdown(), "run: python -m fastgrpo.evaluation.published_page > docs/published.md"
    assert page.count("\n## ") == len(TABLES) + 1
    assert re.search(r"\| JustRL-DeepSeek-1.5B \| 52.60 .* 54.87 \|", page)
