"""The page of an evaluation: what it holds, that it loads nothing, and that no text of a model runs in it."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastgrpo.evaluation.compare import write_comparison
from fastgrpo.evaluation.page.figures import HISTOGRAM_HEIGHT, lengths
from fastgrpo.evaluation.page.ticks import ticks_within
from fastgrpo.evaluation.page.transcripts import choose, shorten
from fastgrpo.evaluation.records import BenchmarkResults, Evaluation, ProblemRow
from fastgrpo.evaluation.results import write_results
from tests.evaluation import synthetic
from tests.report.test_report import HOSTILE, Tags, data_of
from tests.report.test_report_in_browser import Shown, acting, show  # noqa: F401

TWO = {"AIME24": (30, 32, 0.5), "MATH-500": (500, 4, 0.9)}


def page_of(evaluation: Evaluation) -> str:
    write_results(evaluation)
    return (evaluation.folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def hostile(tmp_path: Path) -> Evaluation:
    """Every text that a model or a data set gives is an attack."""
    part = synthetic.benchmark("AIME24", np.eye(6, dtype=bool), text=lambda problem, sample, right: HOSTILE[sample])
    problems = [ProblemRow(row.problem, HOSTILE[row.problem], HOSTILE[-1 - row.problem]) for row in part.problems]
    name = HOSTILE[1]
    evaluation = synthetic.of(
        tmp_path / "run", [BenchmarkResults(part.name, problems, part.judged)], model=HOSTILE[0], notes=[HOSTILE[0]]
    )
    return Evaluation(evaluation.folder, {**evaluation.about, "name": name}, evaluation.benchmarks)


def said_of(page: str, name: str) -> list[str]:
    """The values that the dots of a name say when they are pointed at."""
    return re.findall(rf'data-tip="{name}: ([\d.]+)', page)


def without_scripts(page: str) -> str:
    return re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)


def test_page_holds_charts_tables_and_transcripts(tmp_path: Path):
    page = page_of(synthetic.evaluation(tmp_path / "run", TWO))
    data = data_of(page)
    assert data["charts"].keys() == {"pass", "maj"}
    assert page.count('<div class="dots"') == 1 and page.count('<div class="histogram"') == 2
    assert len(data["transcripts"]) == 30 * 32 + 500 * 4
    for text in ("Average accuracy", "2,960", "avg@k", "pass@k", "maj@k", "truncated %", "<td>MATH-500</td>"):
        assert text in page


def test_published_rows_of_the_same_protocol_stand_beside_the_run(tmp_path: Path):
    page = page_of(synthetic.evaluation(tmp_path / "run", TWO))
    assert said_of(page, "JustRL-DeepSeek-1.5B") == ["52.60", "91.65"], "of AIME24 and MATH-500"
    assert "JustRL, arXiv 2512.16649, table 3" in page
    assert "Judged there by mathd or sympy, then CompassVerifier-3B; here by fastgrpo.rewards:mathd_or_sympy." in page
    other = synthetic.evaluation(tmp_path / "other", TWO, protocol={**synthetic.JUSTRL, "max_response_tokens": 512})
    page = page_of(other)
    assert len(said_of(page, "other")) == 3 and said_of(page, "JustRL-DeepSeek-1.5B") == []
    assert "No published result has the temperature" in page


def test_interval_bars_reach_from_low_to_high(tmp_path: Path):
    evaluation = synthetic.evaluation(tmp_path / "run", TWO)
    page = page_of(evaluation)
    found = json.loads((evaluation.folder / "results.json").read_text())["benchmarks"]["AIME24"]["avg"]
    places = re.findall(r'<line class="bar" x1="([\d.]+)%" x2="([\d.]+)%"', page)
    first, last = re.findall(r'<text x="([\d.]+)%" y="14">([\d,]+)</text>', page)[:6:5]
    assert (first[0], first[1], last[0]) == ("0.0", "0", "100.0")
    low, high = (float(place) / 100 * float(last[1]) for place in places[0])
    assert (low, high) == (pytest.approx(100 * found["low"], abs=0.02), pytest.approx(100 * found["high"], abs=0.02))


def test_histograms_hold_every_response(tmp_path: Path):
    evaluation = synthetic.evaluation(tmp_path / "run", TWO)
    for part in evaluation.benchmarks:
        histogram = lengths(part.judged)
        counts = [
            [int(n.replace(",", "")) for n in re.findall(r"([\d,]+) (?:right|wrong)", b.text)] for b in histogram.bars
        ]
        right, wrong = (sum(column) for column in zip(*counts, strict=True))
        assert (right, wrong) == (part.outcomes().sum(), (~part.outcomes()).sum())
        assert histogram.counts == {"right": right, "wrong": wrong}
        assert all(bar.left >= 0 and bar.left + bar.width <= 100.1 for bar in histogram.bars)
        assert max(bar.right + bar.wrong for bar in histogram.bars) <= HISTOGRAM_HEIGHT


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (0, 91.2, ["0", "20", "40", "60", "80", "100"]),
        (-12.5, 31.0, ["−20", "−10", "0", "10", "20", "30", "40"]),
        (0, 0.31, ["0.0", "0.1", "0.2", "0.3", "0.4"]),
        (0, 0, ["0.0", "0.2"]),
    ],
)
def test_ticks_are_round_and_hold_all_values(low: float, high: float, texts: list[str]):
    axis = ticks_within(low, high)
    assert [tick.text for tick in axis.ticks] == texts
    assert axis.ticks[0].place == 0 and axis.ticks[-1].place == 100
    assert 0 <= axis.place(low) <= axis.place(high) <= 100


def test_one_sample_a_problem_draws_no_curve(tmp_path: Path):
    page = page_of(synthetic.evaluation(tmp_path / "run", {"GSM8K": (20, 1, 0.5)}))
    assert data_of(page)["charts"] == {} and page.count('<div class="histogram"') == 1


def test_page_loads_nothing(tmp_path: Path):
    page = page_of(synthetic.evaluation(tmp_path / "run", TWO))
    assert re.search(r"<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none';", page)
    assert not re.search(r"(src|href)\s*=|url\(|@import", without_scripts(page))


def test_no_text_of_a_model_becomes_an_element(hostile: Evaluation, tmp_path: Path):
    def tags(page: str) -> Any:
        parser = Tags()
        parser.feed(page)
        return parser.count

    part = synthetic.benchmark("AIME24", np.eye(6, dtype=bool), text=lambda problem, sample, right: "plain")
    plain = synthetic.of(tmp_path / "plain", [part], notes=["a note"])
    page = page_of(hostile)
    assert tags(page) == tags(page_of(plain))
    assert {one["response"] for one in data_of(page)["transcripts"]} == set(HOSTILE)


def test_transcripts_stay_within_their_budget_and_are_of_both_kinds(tmp_path: Path):
    parts = [
        synthetic.benchmark(name, synthetic.outcomes_of(30, 32, 0.97), text=lambda problem, sample, right: "x" * 90_000)
        for name in ("one", "two")
    ]
    evaluation = synthetic.of(tmp_path / "run", [*parts, synthetic.benchmark("short", np.eye(3, dtype=bool))])
    chosen = choose(evaluation, budget=600_000)
    assert 300_000 < len(json.dumps({"problems": chosen.problems, "transcripts": chosen.shown})) < 600_000
    shown = {name: [one for one in chosen.shown if one["benchmark"] == name] for name in ("one", "two", "short")}
    assert len(shown["one"]) == len(shown["two"]) > 10 and len(shown["short"]) == 9
    assert {one["right"] for one in shown["one"]} == {True, False}
    assert len({one["problem"] for one in shown["one"]}) > len(shown["one"]) / 2, "spread over the problems"
    assert chosen.num_responses == 2 * 30 * 32 + 9


def test_a_long_text_keeps_its_beginning_and_its_end():
    text = "".join(map(str, range(10_000)))
    assert shorten(text, 1000).startswith(text[:500]) and shorten(text, 1000).endswith(text[-500:])
    assert f"{len(text) - 1000:,} characters are left out" in shorten(text, 1000)
    assert shorten(text, len(text)) == text


@pytest.mark.slow
def test_browser_draws_every_chart_and_fills_the_table(tmp_path: Path, show: Callable[..., Shown]):  # noqa: F811
    evaluation = synthetic.evaluation(tmp_path / "run", TWO)
    page_of(evaluation)
    shown = show(evaluation.folder / "report.html")
    assert shown.console == []
    assert shown.num_drawn == 2, "the curves; the other figures need no script"
    assert len(shown.rows) == 40
    assert shown.count == "2,960 of 2,960 match."


@pytest.mark.slow
def test_browser_filters_and_opens_transcripts(tmp_path: Path, show: Callable[..., Shown]):  # noqa: F811
    evaluation = synthetic.evaluation(tmp_path / "run", TWO)
    page_of(evaluation)
    script = """
      const form = document.getElementById("filters");
      form.kind.value = "wrong"; form.benchmark.value = "MATH-500"; form.oninput();
      document.querySelector("#transcripts tbody tr").click();
    """
    shown = show(acting(evaluation.folder / "report.html", script))
    wrong = (~evaluation.benchmarks[1].outcomes()).sum()
    assert shown.count == f"{wrong} of 2,960 match."
    assert shown.dom.count('<tr class="reader">') == 1 and "recheck that" in shown.dom
    script = (
        'document.querySelector("#transcripts tr.row").click(); document.querySelector("#transcripts tr.row").click();'
    )
    assert '<tr class="reader">' not in show(acting(evaluation.folder / "report.html", script)).dom


@pytest.mark.slow
def test_browser_runs_no_text_of_a_model(hostile: Evaluation, show: Callable[..., Shown]):  # noqa: F811
    page_of(hostile)
    script = 'document.querySelectorAll("#transcripts tr.row").forEach((row) => row.click());'
    shown = show(acting(hostile.folder / "report.html", script))
    assert shown.dom.count('<tr class="reader">') == 36
    assert shown.title != "broken"
    assert not re.search(r"<img|<b>", shown.dom.partition("<script")[0])


@pytest.mark.slow
def test_browser_draws_a_comparison(tmp_path: Path, show: Callable[..., Shown]):  # noqa: F811
    runs = [synthetic.evaluation(tmp_path / name, TWO, seed=seed) for seed, name in enumerate(("a", "b", "c"))]
    write_comparison(runs, tmp_path / "out")
    shown = show(tmp_path / "out" / "compare.html")
    assert shown.console == [] and shown.dom.count('<div class="dots"') == 2
    assert "Difference to a" in shown.dom
