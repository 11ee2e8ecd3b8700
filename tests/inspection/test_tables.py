"""The counts as tables."""

from dataclasses import replace

import pytest
from rich.console import Console

from fastgrpo.inspection.tables import by_temperature, by_verifier
from tests.algorithm.test_no_signal import NOTHING_RIGHT, SOME_RIGHT


def printed(table, width: int = 80) -> list[list[str]]:
    console = Console(width=width)
    with console.capture() as shown:
        console.print(table)
    return [line.split() for line in shown.get().splitlines() if line.strip()]


def test_a_row_a_temperature_has_shares_signal_and_length_and_marks_the_runs():
    headings, _, colder, own = printed(by_temperature({0.7: replace(SOME_RIGHT, boxed=2), 1.0: NOTHING_RIGHT}, 1.0))
    assert headings == ["temperature", "right", "signal", "boxed", "cut", "length"]
    assert " ".join(colder) == "0.7 20 of 96, 21 % 6 of 12 2 % 5 % 100"
    assert " ".join(own) == "1 (the run) 0 of 96, 0 % 0 of 12 83 % 5 % 100"


def test_a_row_a_verifier():
    *_, strict, lenient = printed(by_verifier({"strict_boxed": NOTHING_RIGHT, "simplerl_mix": SOME_RIGHT}))
    assert " ".join(strict) == "strict_boxed 0 of 96, 0 % 0 of 12"
    assert " ".join(lenient) == "simplerl_mix 20 of 96, 21 % 6 of 12"


@pytest.mark.parametrize("factor", [1, 100])
def test_large_counts_fit_into_80_columns(factor):
    many = replace(SOME_RIGHT, groups=12 * factor, responses=96 * factor, right=96 * factor, boxed=96 * factor)
    assert not any("…" in word for line in printed(by_temperature({0.35: many, 1.25: many}, 1.25)) for word in line)
