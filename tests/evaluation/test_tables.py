"""What an evaluation leaves in its folder: figures that follow from its verdicts, and nothing of an unfinished one."""

import json
from pathlib import Path

import numpy as np
import pytest

from fastgrpo.evaluation.records import BenchmarkResults, Evaluation
from fastgrpo.evaluation.results import write_results
from fastgrpo.evaluation.statistics import Estimate
from fastgrpo.evaluation.summary import summarize
from fastgrpo.evaluation.tables import as_markdown, markdown_grid, powers_of_two, with_interval
from tests.evaluation import synthetic

TWO = {"AIME24": (30, 8, 0.5), "MATH-500": (60, 4, 0.9)}


@pytest.fixture
def two(tmp_path: Path) -> Evaluation:
    return synthetic.evaluation(tmp_path / "run", TWO)


def results_of(evaluation: Evaluation) -> dict:
    write_results(evaluation)
    return json.loads((evaluation.folder / "results.json").read_text(), parse_constant=pytest.fail)


def test_json_has_every_figure_of_every_benchmark(two: Evaluation):
    found = results_of(two)
    for part in two.benchmarks:
        figures, outcomes = found["benchmarks"][part.name], part.outcomes()
        assert figures["avg"]["value"] == pytest.approx(outcomes.mean())
        assert figures["avg"]["low"] < figures["avg"]["value"] < figures["avg"]["high"]
        assert list(figures["pass"]) == list(figures["maj"]) == [str(k) for k in range(1, outcomes.shape[1] + 1)]
        assert figures["pass"]["1"] == figures["avg"]
        assert figures["pass"][str(outcomes.shape[1])]["value"] == pytest.approx(outcomes.any(axis=1).mean())
        assert figures["always_right"] == outcomes.all(axis=1).sum()
        assert figures["never_right"] == (~outcomes).all(axis=1).sum()
        assert (figures["num_problems"], figures["samples_per_problem"]) == outcomes.shape
        assert figures["text"]["tokens"] == pytest.approx(np.mean([one.num_tokens for one in part.judged]))
        assert figures["protocol"]["temperature"] == 0.7


def test_suites_average_is_of_benchmarks_and_for_the_k_that_all_have(two: Evaluation):
    found = results_of(two)
    average = found["average"]
    assert average["avg"]["value"] == pytest.approx(np.mean([part.outcomes().mean() for part in two.benchmarks]))
    for figure in ("pass", "maj"):
        assert list(average[figure]) == ["1", "2", "3", "4"]
        for k, estimate in average[figure].items():
            each = [benchmark[figure][k]["value"] for benchmark in found["benchmarks"].values()]
            assert estimate["value"] == pytest.approx(np.mean(each))


def test_majority_is_of_the_boxed_answers(tmp_path: Path):
    texts = ["\\boxed{0}", "\\boxed{0}", "\\boxed{7}", "no box"]
    part = synthetic.benchmark(
        "one", np.array([[True, True, False, False]]), text=lambda problem, sample, right: texts[sample]
    )
    maj = results_of(synthetic.of(tmp_path / "run", [part]))["benchmarks"]["one"]["maj"]
    assert maj["1"]["value"] == pytest.approx(0.5)
    assert maj["4"] == {"value": 1.0, "low": None, "high": None}  # one problem has no interval


def test_every_name_in_the_json_is_defined(two: Evaluation):
    found = results_of(two)
    names = {"avg", "pass", "maj", "average"} | found["benchmarks"]["AIME24"]["text"].keys()
    assert found["definitions"].keys() == names
    assert "10,000 resamples" in found["interval"]


def test_the_same_evaluation_gives_the_same_bytes(two: Evaluation):
    def written() -> list[bytes]:
        write_results(two)
        return [(two.folder / name).read_bytes() for name in ("results.json", "results.md", "report.html")]

    assert written() == written()


def test_a_benchmarks_figures_are_the_same_alone_and_in_a_suite(two: Evaluation):
    alone = Evaluation(two.folder, two.about, two.benchmarks[:1])
    assert results_of(alone)["benchmarks"]["AIME24"] == results_of(two)["benchmarks"]["AIME24"]
    assert results_of(alone)["average"] is None


def test_markdown_has_a_row_a_benchmark_and_the_average(two: Evaluation):
    write_results(two)
    page = (two.folder / "results.md").read_text()
    accuracy = page.split("## pass@k")[0]
    value = 100 * two.benchmarks[0].outcomes().mean()
    assert f"| AIME24 | 30 | 8 | {value:.2f} ± " in accuracy
    assert "| MATH-500 | 60 | 4 | " in accuracy
    assert "| **average** |  |  | **" in accuracy
    assert "| benchmark | @1 | @2 | @4 | @8 |" in page
    assert "| benchmark | tokens | right | wrong | stopped | truncated % | boxed % |" in page


def test_one_sample_a_problem_has_no_table_of_pass_at_k(tmp_path: Path):
    assert "## pass@k" not in as_markdown(summarize(synthetic.evaluation(tmp_path / "run", {"GSM8K": (20, 1, 0.5)})))


@pytest.mark.parametrize("accuracy, shown", [(0.0, "0.00 ± 0.00"), (1.0, "100.00 ± 0.00")])
def test_nothing_right_and_all_right_are_figures_too(tmp_path: Path, accuracy: float, shown: str):
    part = synthetic.benchmark("x", np.full((5, 2), bool(accuracy)))
    assert f"| x | 5 | 2 | {shown} | {shown} | {shown} |" in as_markdown(
        summarize(synthetic.of(tmp_path / "run", [part]))
    )


def test_behaviours_that_were_judged_are_shown(two: Evaluation):
    assert "behaviours" not in as_markdown(summarize(two)) and results_of(two)["behaviours"] == {}
    ratios = {"num_judged": 29, "num_left_out": 1, "backtracking": 0.5, "subgoal_setting": None}
    judged = {"judge": "a model", "benchmarks": {"AIME24": ratios}}
    (two.folder / "behaviours.json").write_text(json.dumps(judged))
    assert results_of(two)["behaviours"] == judged
    assert "| benchmark | judged | left out | backtracking | subgoal setting |" in as_markdown(summarize(two))
    assert "| AIME24 | 29 | 1 | 50.0 | – |" in as_markdown(summarize(two))
    assert "responses that a model judged" in (two.folder / "report.html").read_text()


def test_unfinished_evaluation_is_refused_and_writes_nothing(two: Evaluation):
    first = two.benchmarks[0]
    torn = BenchmarkResults(first.name, first.problems, first.judged[:-1])
    with pytest.raises(ValueError, match="AIME24 is incomplete"):
        write_results(Evaluation(two.folder, two.about, [torn, *two.benchmarks[1:]]))
    assert [path.name for path in two.folder.iterdir()] == ["evaluation.json"]


def test_interval_is_shown_as_half_its_width():
    assert with_interval(Estimate(0.5, 0.4, 0.55)) == "50.00 ± 7.50"
    assert with_interval(Estimate(0.5, None, None)) == "50.00"


def test_powers_of_two_end_with_the_last_k():
    assert powers_of_two(1) == [1]
    assert powers_of_two(32) == [1, 2, 4, 8, 16, 32]
    assert powers_of_two(20) == [1, 2, 4, 8, 16, 20]


def test_a_cell_cannot_end_its_row_or_its_column():
    assert markdown_grid(["a", "b"], [["x|y\nz", "1"]]).splitlines()[-1] == "| x\\|y z | 1 |"
