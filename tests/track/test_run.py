"""A run with the metric and the tracker of docs/tracking.md, a tracker that takes everything and one that is down."""

import json
import re
import shutil
from pathlib import Path

import pytest

from fastgrpo.json_lines import JsonLines
from fastgrpo.track.recorded import numbers_of
from fastgrpo.train import main
from tests.track.trackers import read

HERE = Path(__file__).parent
METRIC, TRACKER = re.findall(r"```python\n(.*?)```", (HERE.parents[1] / "docs" / "tracking.md").read_text(), re.DOTALL)
RECIPE = "from tests.tiny_recipe import config, prepare, reward\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_base):
    """Folder, exit code and output of a run, and of its continuation."""
    runs = tmp_path_factory.mktemp("runs")
    shutil.copytree(tiny_base, runs / "tiny" / "base")
    (runs / "recipe.py").write_text(RECIPE + METRIC)
    (runs / "tracker.py").write_text(TRACKER)
    trackers = [*(f"{HERE / 'trackers.py'}:{name}" for name in ("Recording", "Raising")), f"{runs}/tracker.py:OneFile"]
    train = [str(runs / "recipe.py"), "--runs_dir", str(runs), "--name", "tiny", "--track", *trackers]
    assert main([*train, "--steps", "2"]) == 0
    assert main([*train, "--steps", "3", "--resume"]) == 0
    return runs / "tiny"


def test_a_tracker_has_what_the_run_recorded_also_after_it_went_on(run):
    entries = read(run / "recording.jsonl")
    metrics = JsonLines(run / "metrics.jsonl").read()
    assert [e["log"] for e in entries if "log" in e] == [r["step"] for r in metrics] == [0, 1, 2, 3]
    assert [e["metrics"] for e in entries if "log" in e] == [numbers_of(r) for r in metrics]
    (first, second) = (e for e in entries if "start" in e)
    assert first["start"] == second["start"] and second["settings"]["steps"] == 3
    assert [row["response"] for e in entries if "rollouts" in e for row in e["rows"]] == [
        row["response"] for row in JsonLines(run / "rollouts.jsonl").read() if row["step"] == 1
    ]


def test_a_tracker_that_is_down_stops_no_run_and_is_in_the_summary(run):
    trackers = json.loads((run / "summary.json").read_text())["trackers"]
    assert trackers["Recording"] == {"sent": 1, "dropped": 0, "complaint": ""}
    assert trackers["Raising"] == {"sent": 0, "dropped": 4, "complaint": "ConnectionError: no route to step 0"}


def test_the_documented_tracker_shows_the_rewards(run):
    lines = (run / "curve.txt").read_text().splitlines()
    steps = [line.split() for line in lines[1:] if "[" not in line]
    assert lines[0] == f"tiny {(run / 'track' / 'id').read_text().strip()} 1"
    assert steps == [[str(r["step"]), str(r.get("reward"))] for r in JsonLines(run / "metrics.jsonl").read()]


def test_the_documented_metric_is_recorded(run):
    for record in JsonLines(run / "metrics.jsonl").read()[1:]:
        right, wrong = record["recipe/length_right"], record["recipe/length_wrong"]
        mean = record["accuracy"] * right + (1 - record["accuracy"]) * wrong
        assert mean == pytest.approx(record["response_length"])
