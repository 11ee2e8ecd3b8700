"""The page of a run, as text: what it holds, and what it survives."""

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from fastgrpo.report import write_report
from fastgrpo.report.__main__ import main
from fastgrpo.report.figures import running_mean
from fastgrpo.report.rollouts import embed, spread, thin
from fastgrpo.report.words import amount, duration
from tests.report.conftest import write_lines

FakeRun = Callable[..., Path]
PLOTS = 15
HOSTILE = (
    "</script><script>document.title = 'broken'</script>",
    "<img src=x onerror=\"document.title = 'broken'\">",
    "<!-- <script> ]]> &lt;b&gt; &amp;",
    "null \x00 bell \x07 escape \x1b[31m delete \x7f return \r",
    "half a pair \ud83d, right to left \u202e, line separator \u2028, 数学 😀",
    "${alert(1)} {{ 7 * 7 }} {% raw %} $data",
)


class Tags(HTMLParser):
    """Counts the elements that a parser of the page would open."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.count[tag] += 1


def page_of(folder: Path) -> str:
    return write_report(folder).read_text(encoding="utf-8")


def data_of(page: str) -> Any:
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(data)


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_page_of_a_full_run_has_all_charts_rollouts_and_headline_numbers(fake_run: FakeRun) -> None:
    page = page_of(fake_run())
    data = data_of(page)
    assert len(data["figures"]) == PLOTS
    assert "not recorded" not in page
    assert len(data["rollouts"]) == 960
    for text in ("justrl-1.5b", "28.0%", "56.5%", "+28.5 points", "8 ranks", "seed 1", "finished"):
        assert text in page
    assert (
        "Entropy is the mean over response tokens of the full-vocabulary entropy at the sampling temperature. It is 1.0"
        in page
    )


def test_page_loads_nothing(fake_run: FakeRun) -> None:
    page = page_of(fake_run(num_steps=3))
    assert re.search(r"<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none';", page)
    ours = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"(src|href)\s*=|url\(|@import", ours)


def test_every_chart_has_units_a_title_and_what_health_looks_like(fake_run: FakeRun) -> None:
    page = page_of(fake_run())
    for figure in data_of(page)["figures"].values():
        assert figure["layout"]["xaxis"]["title"]["text"] == "step"
        assert figure["layout"]["yaxis"]["title"]["text"]
    assert page.count("Healthy: ") == PLOTS


def test_published_bands_are_drawn_with_their_source(fake_run: FakeRun) -> None:
    page = page_of(fake_run())
    (band,) = data_of(page)["figures"]["entropy"]["layout"]["shapes"]
    assert (band["y0"], band["y1"]) == (1.2, 1.4)
    assert "Shaded: 1.2 to 1.4 in JustRL, arXiv 2512.16649, figure 2." in page
    assert "Published: 140 billion tokens (table 4); this run is at 0.98%." in page


def test_band_far_from_the_curve_is_told_and_not_drawn(fake_run: FakeRun) -> None:
    page = page_of(fake_run(published={"source": "a paper", "bands": {"response_length": [100000, 200000]}}))
    assert "shapes" not in data_of(page)["figures"]["response_length"]["layout"]
    assert "Published: 100,000 to 200,000 in a paper, beyond this chart." in page


def test_run_without_published_values_says_nothing_of_them(fake_run: FakeRun) -> None:
    assert '<p class="published">' not in page_of(fake_run(published={}))


def test_one_step_is_enough(fake_run: FakeRun) -> None:
    page = page_of(fake_run(num_steps=1, finished=False))
    assert len(data_of(page)["figures"]) == PLOTS
    assert "of 4,380, not finished" in page


def test_evaluation_before_the_first_step_is_enough(fake_run: FakeRun) -> None:
    folder = fake_run(num_steps=1, rollouts=[], finished=False)
    (folder / "metrics.jsonl").write_text('{"step": 0, "held_out_accuracy": 0.25}\n')
    page = page_of(folder)
    assert list(data_of(page)["figures"]) == ["held_out_accuracy"]
    assert page.count("not recorded in this run") == PLOTS - 1
    assert "25.0%" in page


def test_metrics_alone_are_enough(fake_run: FakeRun) -> None:
    folder = fake_run(num_steps=5)
    for name in ("run.json", "rollouts.jsonl", "summary.json"):
        (folder / name).unlink()
    page = page_of(folder)
    assert "This run kept no rollouts." in page
    assert "<h1>fake</h1>" in page
    assert "28.0%" in page, "the first evaluation"
    assert "56.5%" in page, "the latest evaluation"


def test_nulls_are_gaps(fake_run: FakeRun) -> None:
    folder = fake_run(num_steps=10)
    records = lines(folder / "metrics.jsonl")
    records[4]["grad_norm"] = None
    records[5] = {"step": 5}
    text = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(text.replace(f'"reward": {records[7]["reward"]}', '"reward": NaN'))
    figures = data_of(page_of(folder))["figures"]
    assert [i for i, v in enumerate(figures["grad_norm"]["data"][0]["y"]) if v is None] == [0, 4, 5]
    assert [i for i, v in enumerate(figures["reward"]["data"][0]["y"]) if v is None] == [0, 5, 7]


def test_all_null_metric_is_not_recorded(fake_run: FakeRun) -> None:
    folder = fake_run(num_steps=3)
    records = [{**record, "rollout_kl": None} for record in lines(folder / "metrics.jsonl")]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert "rollout_kl" not in data_of(page_of(folder))["figures"]


@pytest.mark.parametrize("name", ["metrics.jsonl", "rollouts.jsonl"])
def test_torn_last_line_is_skipped_and_told(fake_run: FakeRun, name: str) -> None:
    folder = fake_run(num_steps=5)
    with (folder / name).open("ab") as file:
        file.write('{"step": 6, "reward": 0.5, "prompt": "π'.encode()[:-1])
    page = page_of(folder)
    assert f"{name}: 1 unreadable line skipped." in page
    assert data_of(page)["figures"]["reward"]["data"][0]["x"] == [0, 1, 2, 3, 4, 5]


def test_step_written_again_after_a_resume_counts_once(fake_run: FakeRun) -> None:
    folder = fake_run(num_steps=5)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "reward": 0.125}\n')
    (reward,) = data_of(page_of(folder))["figures"]["reward"]["data"]
    assert reward["x"] == [0, 1, 2, 3, 4, 5]
    assert reward["y"][5] == 0.125


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_stay_texts(fake_run: FakeRun, text: str) -> None:
    names = ("prompt", "response", "answer", "finish_reason")
    rollout = {"step": 1, "reward": 1.0, **dict.fromkeys(names, text)}
    folder = fake_run(num_steps=2, rollouts=[rollout], published={"source": text, "bands": {"reward": [-1, 1]}})
    about = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**about, "name": text, "model": text, "config": {"a": text}}))
    page = page_of(folder)
    tags = Tags()
    tags.feed(page)
    assert tags.count["script"] == 3, "the data, plotly and our own"
    assert tags.count["img"] == 0
    assert data_of(page)["rollouts"][0]["response"] == text


def test_unknown_keys_and_files_are_ignored(fake_run: FakeRun) -> None:
    folder = fake_run(num_steps=2, rollouts=[{"step": 1, "reward": None, "judge": {"a": [1]}, "prompt": ["not", 1]}])
    (folder / "events.bin").write_bytes(b"\xff\xfe")
    assert "judge" not in data_of(page_of(folder))["rollouts"][0]


def test_many_rollouts_are_thinned_evenly_and_counted(fake_run: FakeRun) -> None:
    long = {"prompt": "p", "response": "x" * 50_000, "reward": 1.0}
    folder = fake_run(num_steps=60, rollouts=[{"step": step, **long} for step in range(1, 61) for _ in range(4)])
    page = page_of(folder)
    steps = sorted({rollout["step"] for rollout in data_of(page)["rollouts"]})
    assert steps[0] == 1
    assert steps[-1] == 60
    assert max(b - a for a, b in pairwise(steps)) <= 6
    assert re.search(r"Shown are 56 of 240 kept rollouts, from 14 of 60 steps, spread evenly\.", page)
    assert len(embed(data_of(page)["rollouts"])) < 3_000_000


def test_one_step_too_large_for_the_page_is_thinned_within() -> None:
    records = [{"step": 1, "response": "x" * 1000, "reward": float(i)} for i in range(100)]
    thinned = thin(lambda: records, budget=30_000)
    assert len(embed(thinned.shown)) <= 30_000
    assert 20 <= len(thinned.shown) < 30
    assert thinned.shown[0]["reward"] == 0
    assert thinned.shown[-1]["reward"] == 99


def test_spread_keeps_the_ends_and_repeats_nothing() -> None:
    for length in range(1, 40):
        for count in range(1, length + 1):
            chosen = spread(range(length), count)
            assert len(set(chosen)) == count
            assert chosen[-1] == length - 1
            assert count == 1 or chosen[0] == 0


def test_running_mean_skips_gaps() -> None:
    assert running_mean([1.0, None, 3.0, 5.0], 2) == [1.0, None, 3.0, 4.0]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.5, "0.5 s"), (59.99, "60 s"), (60, "1 min"), (750, "12 min 30 s"), (3600, "1 h"), (1.3e6, "15 d 1 h")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(512, "512"), (9999, "9,999"), (31_250, "31.2 thousand"), (9.2e6, "9.2 million"), (1.4e11, "140 billion")],
)
def test_amount(count: float, text: str) -> None:
    assert amount(count) == text


def test_command_prints_the_path_and_finds_runs_by_name(
    fake_run: FakeRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fake_run(num_steps=2)
    main([str(folder)])
    assert capsys.readouterr().out == f"{folder / 'report.html'}\n"
    monkeypatch.chdir(folder.parent.parent)
    main(["fake"])
    assert capsys.readouterr().out == f"{Path('runs/fake/report.html')}\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "holds no metrics.jsonl"), ("", "holds no step yet"), ('{"step', "holds no step yet")],
)
def test_folder_without_a_step_is_an_error(
    fake_run: FakeRun, capsys: pytest.CaptureFixture[str], content: str | None, message: str
) -> None:
    folder = fake_run(num_steps=1)
    (folder / "metrics.jsonl").unlink()
    if content is not None:
        (folder / "metrics.jsonl").write_text(content)
    with pytest.raises(SystemExit, match="2"):
        main([str(folder)])
    assert message in capsys.readouterr().err
    assert not (folder / "report.html").exists()


def test_missing_folder_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "nowhere")])
    assert "there is neither" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no run folder"):
        write_report(tmp_path / "nowhere")


def test_report_does_not_import_torch() -> None:
    code = "import sys, fastgrpo.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_divergence_is_drawn_where_a_run_has_a_reference_and_else_not_mentioned(fake_run: FakeRun) -> None:
    folder = fake_run()
    assert "Divergence from the reference" not in page_of(folder)
    with_kl = [{**record, "reference_kl": 0.01 * n} for n, record in enumerate(lines(folder / "metrics.jsonl"))]
    write_lines(folder / "metrics.jsonl", with_kl)
    assert "Divergence from the reference" in page_of(folder)
