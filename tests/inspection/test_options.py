"""The command line of `fastgrpo inspect`."""

import pytest

from fastgrpo.inspection.options import parse


def test_what_is_no_option_is_a_setting_of_the_run_wherever_it_stands():
    found = parse(["m", "d.jsonl", "--rollout.temperature", "0.8", "--problems", "3", "--data.suffix=x", "--answers=4"])
    assert found.places == ["m", "d.jsonl"] and (found.problems, found.answers) == (3, 4)
    assert found.settings == ["--rollout.temperature", "0.8", "--data.suffix=x"]


def test_the_runs_own_temperature_is_always_drawn_at():
    assert parse([]).temperatures_for(1.0) == [0.7, 1.0, 1.2]
    assert parse(["--temperatures", "0.9", "0.3"]).temperatures_for(0.6) == [0.3, 0.6, 0.9]
    assert parse(["--temperatures", "0.6"]).temperatures_for(0.6) == [0.6]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["a", "b", "c"], "a recipe, or a model and its data, got a b c"),
        (["--problems", "0"], "--problems must be at least 1, got 0"),
        (["--answers", "1"], "--answers must be at least 2, got 1"),
        (["--temperatures", "0"], "--temperatures must be above 0 and finite, got 0"),
        (["--temperatures", "1", "inf"], "got inf"),
    ],
)
def test_numbers_without_sense_are_refused_in_words(arguments, words):
    with pytest.raises(ValueError, match=words):
        parse(arguments)
