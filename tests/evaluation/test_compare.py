"""Comparisons: judged on the same problems, refused on others, and warned of where the protocols differ."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastgrpo.evaluation.compare import compare, write_comparison
from fastgrpo.evaluation.records import BenchmarkResults, Evaluation, ProblemRow
from tests.evaluation import synthetic
from tests.evaluation.synthetic import JUSTRL


def run(folder: Path, *outcomes: np.ndarray, **about: object) -> Evaluation:
    names = ("AIME24", "MATH-500")
    parts = [synthetic.benchmark(name, rows) for name, rows in zip(names, outcomes, strict=False)]
    return synthetic.of(folder, parts, **about)


WORSE = np.array([[True, False]] * 20)
BETTER = np.array([[True, True]] * 12 + [[True, False]] * 8)


def test_difference_has_its_interval_and_p_value(tmp_path: Path):
    write_comparison([run(tmp_path / "a", WORSE), run(tmp_path / "b", BETTER)], tmp_path / "out")
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert found["first"] == "a"
    assert {name: run["AIME24"]["value"] for name, run in found["accuracies"].items()} == {"a": 0.5, "b": 0.8}
    difference = found["differences"]["b"]["AIME24"]
    assert difference["estimate"]["value"] == pytest.approx(0.3)
    assert 0.15 < difference["estimate"]["low"] < 0.3 < difference["estimate"]["high"] < 0.45
    assert difference["p_value"] == 2 / 2**12  # all twelve problems that differ speak for b
    page = (tmp_path / "out" / "compare.md").read_text()
    assert "# b against a" in page and "| AIME24 | +30.00 | +" in page and "| 0.00049 |" in page


def test_runs_come_in_the_order_given_and_each_differs_from_the_first(tmp_path: Path):
    markdown = compare([run(tmp_path / "b", BETTER), run(tmp_path / "a", WORSE), run(tmp_path / "c", BETTER)])
    assert "## Differences to b" in markdown and "\u221230.00" in markdown
    assert markdown.index("| a | difference") < markdown.index("| c | difference")
    assert "| AIME24 | +0.00 | +0.00 to +0.00 | 1 |" in markdown


def test_average_weighs_benchmarks_equally(tmp_path: Path):
    large = np.array([[True, False]] * 200)
    markdown = compare([run(tmp_path / "a", WORSE, large), run(tmp_path / "b", BETTER, large)])
    assert "| **average** | **+15.00** |" in markdown
    assert "| run | average | AIME24 | MATH-500 |" in markdown


def test_other_problems_are_refused(tmp_path: Path):
    first = run(tmp_path / "a", WORSE)
    with pytest.raises(ValueError, match=r"AIME24 has 20 problems in .*a and 19 in .*b"):
        compare([first, run(tmp_path / "b", WORSE[:19])])
    part = first.benchmarks[0]
    for changed in (replace(part.problems[7], text="another"), replace(part.problems[7], answer="15")):
        problems: list[ProblemRow] = [*part.problems[:7], changed, *part.problems[8:]]
        other = Evaluation(tmp_path / "b", first.about, [BenchmarkResults(part.name, problems, part.judged)])
        with pytest.raises(ValueError, match="AIME24, problem 7 is another one, or has another answer"):
            compare([first, other])


def test_unfinished_run_is_refused(tmp_path: Path):
    first, other = run(tmp_path / "a", WORSE), run(tmp_path / "b", WORSE)
    part = other.benchmarks[0]
    torn = Evaluation(other.folder, other.about, [BenchmarkResults(part.name, part.problems, part.judged[:-1])])
    with pytest.raises(ValueError, match="incomplete"):
        compare([first, torn])


def test_protocols_that_differ_are_named(tmp_path: Path):
    first = run(tmp_path / "a", WORSE, WORSE)
    other = run(tmp_path / "b", WORSE, WORSE, protocol={**JUSTRL, "temperature": 1.0}, verifier_model="compass")
    markdown = compare([first, other])
    assert "> Protocols differ on AIME24, MATH-500: temperature is 1.0 in b and 0.7 in a." in markdown
    assert "> Protocols differ on all benchmarks: verifier_model is 'compass' in b and '' in a." in markdown
    assert markdown.count("Protocols differ") == 2
    same = run(tmp_path / "c", WORSE, WORSE, protocol={**JUSTRL, "source": "another folder"}, seed=5, notes=["x"])
    assert "Protocols differ" not in compare([first, same])


def test_another_number_of_samples_is_compared_with_a_warning(tmp_path: Path):
    markdown = compare([run(tmp_path / "a", WORSE), run(tmp_path / "b", np.repeat(WORSE, 2, axis=1))])
    assert "samples_per_problem is 4 in b and 2 in a" in markdown and "| AIME24 | +0.00 |" in markdown


def test_benchmarks_that_not_all_have_are_left_out_and_named(tmp_path: Path):
    first, other = run(tmp_path / "a", WORSE, WORSE), run(tmp_path / "b", WORSE)
    markdown = compare([first, other])
    assert "> MATH-500: left out" in markdown and "| MATH-500" not in markdown
    alone = Evaluation(first.folder, first.about, first.benchmarks[1:])
    with pytest.raises(ValueError, match="no benchmark in common"):
        compare([alone, other])


def test_fewer_than_two_runs_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="two evaluations or more, got 1"):
        compare([run(tmp_path / "a", WORSE)])


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path):
    first, other = run(tmp_path / "x" / "run", WORSE), run(tmp_path / "y" / "run", BETTER)
    markdown = compare([first, other])
    assert str(tmp_path / "x" / "run") in markdown and str(tmp_path / "y" / "run") in markdown
    with pytest.raises(ValueError, match="not with itself"):
        compare([first, first])
