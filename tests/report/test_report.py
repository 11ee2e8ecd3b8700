"""The page of a run, as text: what it holds, and what it survives."""

import base64
import json
import math
import re
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastgrpo.pages import amount, duration, spread
from fastgrpo.report import write_report
from fastgrpo.report.__main__ import main
from fastgrpo.report.charts import MAX_CHART_BYTES
from fastgrpo.report.reduce import Buckets
from fastgrpo.report.rollouts import read_rollouts
from tests.report.conftest import write_lines

FakeRun = Callable[..., Path]
PLOTS = 16  # with that of the failures, which the made-up run has
SMALL = 3  # metrics that no chart knows: reward_std, learning_rate and logprob_diff_p99
WITHOUT_FAILURES = PLOTS - 1 + SMALL + 2  # then failures and skipped updates are small charts
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


def data_of(page: str) -> dict[str, Any]:
    """What the page holds for its scripts: charts, axes, marks and rollouts or transcripts."""
    found = re.findall(r'<script type="application/octet-stream" id="\w+-data">(.*?)</script>', page, re.DOTALL)
    parts = [json.loads(zlib.decompress(base64.b64decode(part))) for part in found]
    return {name: value for part in parts for name, value in part.items()}


def values_of(page: str, metric: str) -> list[float | None]:
    (series,) = data_of(page)["charts"][metric]["series"]
    return series["values"]


def steps_of(page: str, metric: str) -> list[int]:
    data = data_of(page)
    return data["axes"][data["charts"][metric]["axis"]]["first"]


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_page_of_a_full_run_has_all_charts_rollouts_and_headline_numbers(fake_run: FakeRun) -> None:
    page = page_of(fake_run())
    data = data_of(page)
    assert len(data["charts"]) == PLOTS + SMALL
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
    assert page.count('<p class="unit">') == page.count("Healthy: ") == PLOTS
    assert page.count(" over the steps, in ") == PLOTS
    assert page.count("<h3>") == PLOTS + SMALL


def test_published_bands_are_drawn_with_their_source(fake_run: FakeRun) -> None:
    page = page_of(fake_run())
    assert data_of(page)["charts"]["entropy"]["band"] == [1.2, 1.4]
    assert "Shaded: 1.2 to 1.4 in JustRL, arXiv 2512.16649, figure 2." in page
    assert "Published: 140 billion tokens (table 4); this run is at 0.98%." in page


def test_band_far_from_the_curve_is_told_and_not_drawn(fake_run: FakeRun) -> None:
    page = page_of(fake_run(published={"source": "a paper", "bands": {"response_length": [100000, 200000]}}))
    assert "band" not in data_of(page)["charts"]["response_length"]
    assert "Published: 100,000 to 200,000 in a paper, beyond this chart." in page


def test_run_without_published_values_says_nothing_of_them(fake_run: FakeRun) -> None:
    assert '<p class="published">' not in page_of(fake_run(published={}))


def test_one_step_is_enough(fake_run: FakeRun) -> None:
    page = page_of(fake_run(num_steps=1, finished=False))
    assert len(data_of(page)["charts"]) == WITHOUT_FAILURES
    assert "of 4,380, not finished" in page


def test_evaluation_before_the_first_step_is_enough(fake_run: FakeRun) -> None:
    folder = fake_run(num_steps=1, rollouts=[], finished=False)
    (folder / "metrics.jsonl").write_text('{"step": 0, "held_out_accuracy": 0.25}\n')
    page = page_of(folder)
    assert list(data_of(page)["charts"]) == ["held_out_accuracy"]
    assert page.count("not recorded in this run") == PLOTS - 2, "all others but the failures"
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
    page = page_of(folder)
    assert [i for i, v in enumerate(values_of(page, "grad_norm")) if v is None] == [0, 4, 5]
    assert [i for i, v in enumerate(values_of(page, "reward")) if v is None] == [0, 5, 7]
    assert page.count("Not a finite number in 1 step, drawn as gaps.") == 2, "step 5 recorded neither"


def test_all_null_metric_is_not_recorded(fake_run: FakeRun) -> None:
    folder = fake_run(num_steps=3)
    records = [{**record, "rollout_kl": None} for record in lines(folder / "metrics.jsonl")]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert "rollout_kl" not in data_of(page_of(folder))["charts"]


@pytest.mark.parametrize("name", ["metrics.jsonl", "rollouts.jsonl"])
def test_torn_last_line_is_skipped_and_told(fake_run: FakeRun, name: str) -> None:
    folder = fake_run(num_steps=5)
    with (folder / name).open("ab") as file:
        file.write('{"step": 6, "reward": 0.5, "prompt": "π'.encode()[:-1])
    page = page_of(folder)
    assert f"{name}: 1 unreadable line skipped." in page
    assert steps_of(page, "reward") == [0, 1, 2, 3, 4, 5]


def test_step_written_again_after_a_resume_counts_once(fake_run: FakeRun) -> None:
    folder = fake_run(num_steps=5)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "reward": 0.125}\n')
    page = page_of(folder)
    assert steps_of(page, "reward") == [0, 1, 2, 3, 4, 5]
    assert values_of(page, "reward")[5] == 0.125


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
    assert tags.count["script"] == 9, "charts and records, uPlot and our own six"
    assert tags.count["img"] == 0
    assert data_of(page)["rollouts"][0]["response"] == text


def test_unknown_keys_and_files_are_ignored(fake_run: FakeRun) -> None:
    folder = fake_run(num_steps=2, rollouts=[{"step": 1, "reward": None, "judge": {"a": [1]}, "prompt": ["not", 1]}])
    (folder / "events.bin").write_bytes(b"\xff\xfe")
    assert "judge" not in data_of(page_of(folder))["rollouts"][0]


def test_many_rollouts_are_thinned_evenly_and_counted(fake_run: FakeRun) -> None:
    long = {"prompt": "p", "response": "x" * 130_000, "reward": 1.0}
    folder = fake_run(num_steps=60, rollouts=[{"step": step, **long} for step in range(1, 61) for _ in range(4)])
    page = page_of(folder)
    steps = sorted({rollout["step"] for rollout in data_of(page)["rollouts"]})
    assert steps[0] == 1
    assert steps[-1] == 60
    assert max(b - a for a, b in pairwise(steps)) <= 6
    assert re.search(r"Shown are 60 of 240 kept rollouts, from 15 of 60 steps, spread evenly\.", page)
    assert len(json.dumps(data_of(page)["rollouts"])) < 8_000_000


def test_one_step_too_large_for_the_page_is_thinned_within(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [{"step": 1, "response": "x" * 1000, "reward": float(i)} for i in range(100)])
    thinned = read_rollouts(tmp_path / "a.jsonl", budget=30_000)
    assert sum(len(json.dumps(rollout)) for rollout in thinned.shown) <= 33_000
    assert 20 <= len(thinned.shown) < 30
    assert thinned.shown[0]["reward"] == 0
    assert thinned.shown[-1]["reward"] == 99
    assert (thinned.num_kept, thinned.num_steps_kept) == (100, 1)


def test_rollouts_are_by_step_whatever_their_order_and_their_fields_order(tmp_path: Path) -> None:
    lines = [
        b'{"reward": 1.0, "step": 2}',
        b'{"step": 1, "reward": 0.5}',
        b'{"step": 1, "reward": }',
        b"[1]",
        b"{}",
        b"",
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    rollouts = read_rollouts(tmp_path / "a.jsonl")
    assert [(rollout["step"], rollout["reward"]) for rollout in rollouts.shown] == [(1, 0.5), (2, 1.0)]
    assert (rollouts.num_kept, rollouts.num_skipped) == (2, 3)


def test_spread_keeps_the_ends_and_repeats_nothing() -> None:
    for length in range(1, 40):
        for count in range(1, length + 1):
            chosen = spread(range(length), count)
            assert len(set(chosen)) == count
            assert chosen[-1] == length - 1
            assert count == 1 or chosen[0] == 0


def test_buckets_keep_every_step_mean_and_spike() -> None:
    steps = np.arange(3, 1003)
    column = np.sin(steps / 50)
    column[500:503], column[700] = np.nan, 9.0
    buckets = Buckets.at_most(300, steps)
    assert buckets.size == 4
    assert buckets.first.tolist()[:2] == [3, 7] and buckets.last.tolist()[-2:] == [998, 1002]
    assert [b - a for a, b in zip(buckets.first, buckets.last, strict=True)] == [3] * 250
    mean, low, high = buckets.reduce(column)
    assert mean[0] == pytest.approx(column[:4].mean()) and mean[125] == column[503] and high[175] == 9.0
    assert low[0] == column[:4].min()
    uneven = Buckets.at_most(3, np.arange(7))
    assert uneven.first.tolist() == [0, 3, 6] and uneven.last.tolist() == [2, 5, 6]
    assert np.isnan(uneven.reduce(np.full(7, np.nan))[0]).all()


def test_a_long_run_has_a_bounded_page_in_which_spikes_are_seen(fake_run: FakeRun) -> None:
    folder = fake_run(num_steps=2000, rollouts=[])
    records = [
        {**record, **{f"recipe/metric_{i}": math.sin(i * n) for i in range(60)}}
        for n, record in enumerate(lines(folder / "metrics.jsonl"))
    ]
    records[1234]["grad_norm"] = 77.0
    write_lines(folder / "metrics.jsonl", records)
    page = page_of(folder)
    assert len(page) < 400_000
    assert len(re.findall(r'id="charts-data">(.*?)<', page)[0]) <= MAX_CHART_BYTES
    (series,) = data_of(page)["charts"]["grad_norm"]["series"]
    assert max(high for high in series["high"] if high is not None) == 77.0
    assert len(series["values"]) < 1000


def test_everything_that_is_a_number_is_drawn(fake_run: FakeRun) -> None:
    folder = fake_run(num_steps=5)
    new = {
        "recipe/hedges": 0.1, "reward/format": 0.5, "checkpoint_s": 0.25, "settle_s": 0.125, "oddity": 3,
        "a flag": True, "a list": [1], "last_verifier_error": "TypeError: no", "verifier_failures": 2,
    }  # fmt: skip
    write_lines(folder / "metrics.jsonl", [{**record, **new} for record in lines(folder / "metrics.jsonl")])
    page = page_of(folder)
    charts = data_of(page)["charts"]
    drawn = {*charts, *(one["name"] for one in charts["step_s"]["series"])}
    assert {"recipe/hedges", "reward/format", "oddity", "checkpoint", "wait for engines"} <= drawn
    assert not {"a flag", "a list", "last_verifier_error", "settle_s"} & charts.keys()
    assert "12 verifier failures, the last: TypeError: no" in page
    order = [page.index(f"<h2>{title}</h2>") for title in ("Learning", "Recipe", "Speed", "Everything else")]
    assert order == sorted(order)
    phases = {one["name"]: one["values"][1] for one in charts["step_s"]["series"]}
    whole = lines(folder / "metrics.jsonl")[1]["step_s"]
    assert sum(phases.values()) == pytest.approx(whole, rel=1e-3)


def test_phases_resets_and_resumes_are_marked(fake_run: FakeRun) -> None:
    folder = fake_run(num_steps=10)
    about = json.loads((folder / "run.json").read_text())
    phases = [{"first_step": 4, "settings": {"rollout.group_size": 16}}, {"first_step": 400, "settings": {}}]
    about["algorithm"] = {"phases": phases, "reference_reset": {"every_steps": 3, "clear_optimizer": False}}
    (folder / "run.json").write_text(json.dumps(about))
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(f'{{"step": {step}, "reward": 0.5}}\n' for step in (8, 9, 10))
    page = page_of(folder)
    assert [(mark["label"], mark["after"]) for mark in data_of(page)["marks"]] == [
        ("phase 2", [4]),
        ("reset", [3, 6, 9]),
        ("resumed", [7]),
    ]
    assert "after step 4: rollout.group_size 16" in page
    about["algorithm"] = {"phases": "none", "reference_reset": {"every_steps": "3"}}
    (folder / "run.json").write_text(json.dumps(about))
    assert [mark["label"] for mark in data_of(page_of(folder))["marks"]] == ["resumed"]


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
