"""The benchmark of the report: a made-up run becomes a page, and the figures are those of the bars."""

import shutil
from pathlib import Path

import pytest

from bench import harness, report
from bench.__main__ import main


@pytest.mark.slow
def test_a_run_is_made_opened_and_kept_with_its_bars(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(report, "RUNS", {"12 steps": (12, 2)})
    assert main(["report"]) == 0
    printed = capsys.readouterr().out
    for line in (
        "page made, 12 steps: ",
        "page without its rollouts, 12 steps: ",
        "first chart in Chromium, 12 steps: ",
    ):
        assert line in printed
    page = harness.read_results("report", report.torch.device("cpu"))["12 steps"]
    assert page["bytes_without_rollouts"] < page["page_bytes"] == pytest.approx(120_000, rel=0.5)
    if shutil.which("chromium"):
        assert 0 < page["first_chart_s"] <= page["all_charts_s"] <= page["rollouts_s"]


def test_a_made_up_run_has_every_kind_of_metric(tmp_path: Path):
    report.write_run(tmp_path, num_steps=50, rollouts_per_step=2)
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text.count("\n") == 50 and '"held_out_accuracy": 1.0' in text and '"recipe/hedges"' in text
    assert (tmp_path / "rollouts.jsonl").read_text().count("\n") == 100
