"""A run that was killed twice leaves one continuous curve in every tracker, as the tracker's own reader sees it."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fastgrpo.json_lines import JsonLines, write_json
from fastgrpo.track.follow import follow
from fastgrpo.track.recorded import numbers_of
from tests.track import wandb_file

pytestmark = pytest.mark.peers

HERE = Path(__file__).parent
STEPS, CHECKPOINT_EVERY = 20, 4
TRACKERS = ["tensorboard", "wandb", "trackio", "mlflow"]
SETTINGS = ["--steps", str(STEPS), "--checkpoint.every_steps", str(CHECKPOINT_EVERY), "--evaluation.every_steps", "5"]
KILL_AFTER = 4  # steps


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_base):
    """The folder of a run that was killed twice in steps that it had to do once more: the run alone, and the run with
    the process of its trackers."""
    runs = tmp_path_factory.mktemp("runs")
    folder = runs / "tiny"
    shutil.copytree(tiny_base, folder / "base")
    here = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "MLFLOW_", "TRACKIO_"))}
    command = [sys.executable, "-m", "fastgrpo", "train", "--ranks", "1", str(HERE / "slow_recipe.py"), *SETTINGS]
    command += ["--runs_dir", str(runs), "--resume", "--track", *TRACKERS]

    def start():
        return psutil.Popen(command, cwd=HERE.parents[1], env={**here, "TRACKIO_DIR": str(runs / "trackio")})

    started = []
    for with_trackers in (False, True):
        before, child = recorded(folder), start()
        while (step := recorded(folder)) < before + KILL_AFTER or step % CHECKPOINT_EVERY < 2 or not sent(folder, step):
            assert child.poll() is None, "the run ended before it was killed"
            time.sleep(0.02)
        processes = child.children(recursive=True)
        started += processes
        trackers = next(p for p in processes if "fastgrpo.track" in p.cmdline())
        child.kill()
        if with_trackers:
            trackers.kill()
        child.wait()
    assert start().wait(timeout=120) == 0
    _, left = psutil.wait_procs(started, timeout=30)
    assert left == []  # W&B's own process too
    return folder


def recorded(folder):
    return max((r["step"] for r in JsonLines(folder / "metrics.jsonl").read()), default=0)


def sent(folder, step):
    """Whether a step has reached the trackers whose files show it at once."""
    curves = (in_tensorboard(folder), in_trackio(folder), in_mlflow(folder))
    return all(step in [s for s, _ in curve.get("reward", [])] for curve in curves)


def in_tensorboard(folder):
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    curves = {}
    for path in sorted(folder.glob("tensorboard/events*")):
        for event in LegacyEventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.WhichOneof("value") == "simple_value":
                    curves.setdefault(value.tag, []).append((event.step, value.simple_value))
    return curves


def in_wandb(folder):
    curves = {}
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    for step, values in wandb_file.history(path):
        for name, value in values.items():
            if not name.startswith("_"):
                curves.setdefault(name, []).append((step, value))
    return curves


def in_trackio(folder):
    curves = {}
    for database in folder.parent.glob("trackio/fastgrpo*.db"):
        with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
            rows = connection.execute("select step, metrics from metrics order by id").fetchall()
        for step, metrics in rows:
            for name, value in json.loads(metrics).items():
                curves.setdefault(name, []).append((step, value))
    return curves


def in_mlflow(folder):
    curves = {}
    for path in folder.glob("mlruns/*/*/metrics/**/*"):
        if path.is_file():
            lines = [line.split() for line in path.read_text().splitlines()]
            curves[path.name] = [(int(step), float(value)) for _, value, step, *_ in lines]
    return curves


READERS = [in_tensorboard, in_wandb, in_trackio, in_mlflow]


@pytest.mark.parametrize("read", READERS)
def test_every_step_is_in_the_curve_once_and_as_the_run_recorded_it(run, read):
    curves, metrics = read(run), JsonLines(run / "metrics.jsonl").read()
    assert [r["step"] for r in metrics] == list(range(STEPS + 1))
    assert [step for step, _ in curves["reward"]] == list(range(1, STEPS + 1))
    assert [step for step, _ in curves["held_out_accuracy"]] == [0, 5, 10, 15, 20]
    for name in set().union(*map(numbers_of, metrics)):
        expected = [(r["step"], numbers_of(r)[name]) for r in metrics if name in numbers_of(r)]
        assert [s for s, _ in curves[name]] == [s for s, _ in expected]
        assert [v for _, v in curves[name]] == pytest.approx([v for _, v in expected], rel=1e-6)


def test_tensorboard_shows_the_curve_the_settings_and_the_rollouts(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(run / "tensorboard")).Reload()
    assert [event.step for event in shown.Scalars("reward")] == list(range(1, STEPS + 1))
    assert [event.step for event in shown.Tensors("rollouts")] == [1, 10, 20]
    settings = shown.Tensors("settings")[0].tensor_proto.string_val[0].decode()
    assert "| rollout.group_size | 4 |" in settings


def test_wandb_has_one_run_with_its_settings_and_tables(run):
    (path,) = run.glob("wandb/offline-run-*/*.wandb")
    records = list(wandb_file.records(path))
    (first,) = (r.run for r in records if r.WhichOneof("record_type") == "run")
    assert first.run_id == (run / "track" / "id").read_text().strip() and first.display_name == "tiny"
    assert {u.key: json.loads(u.value_json) for u in first.config.update}["rollout.group_size"] == 4
    assert len(list(path.parent.glob("files/media/table/rollouts_*.table.json"))) == 3


def test_trackio_and_mlflow_have_settings_and_tables(run):
    with sqlite3.connect(next(run.parent.glob("trackio/fastgrpo*.db"))) as connection:
        ((config,),) = connection.execute("select config from configs").fetchall()
    assert json.loads(config)["rollout.group_size"] == 4
    assert [step for step, table in in_trackio(run)["rollouts"] if table] == [1, 10, 20]
    assert [p.read_text() for p in run.glob("mlruns/*/*/params/rollout.group_size")] == ["4"]
    assert len(list(run.glob("mlruns/*/*/artifacts/rollouts/step_*.json"))) == 3


def test_the_summary_says_that_every_step_was_sent(run):
    trackers = json.loads((run / "summary.json").read_text())["trackers"]
    assert {name: (t["sent"], t["dropped"]) for name, t in trackers.items()} == dict.fromkeys(TRACKERS, (STEPS + 1, 0))


def test_a_run_that_is_over_is_sent_afterwards(run):
    shutil.rmtree(run / "tensorboard")
    command = [sys.executable, "-m", "fastgrpo", "track", str(run), "--track", "tensorboard"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"tensorboard: {STEPS + 1} steps sent, 0 dropped\n")
    assert [step for step, _ in in_tensorboard(run)["reward"]] == list(range(1, STEPS + 1))


@pytest.mark.parametrize(
    "environment, mode",
    [({}, "offline"), ({"WANDB_API_KEY": "x"}, "online"), ({"WANDB_API_KEY": "x", "WANDB_MODE": "offline"}, "offline")],
)
def test_wandb_is_offline_unless_the_environment_says_otherwise(environment, mode):
    from fastgrpo.track.wandb import mode_of

    assert mode_of(environment) == mode


def test_a_curve_on_an_mlflow_server_goes_on_after_what_it_has(run, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())  # files stand for a server here
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    (tmp_path / "run.json").write_bytes((run / "run.json").read_bytes())
    metrics = [{**record, "reward/style": 0.5} for record in JsonLines(run / "metrics.jsonl").read()]
    for last in (12, STEPS):
        (tmp_path / "metrics.jsonl").unlink(missing_ok=True)
        JsonLines(tmp_path / "metrics.jsonl").append(metrics[: last + 1])
        assert follow(tmp_path, ["mlflow"], lambda: True, print, None)["mlflow"]["dropped"] == 0
    assert [step for step, _ in in_mlflow(tmp_path)["reward"]] == list(range(1, STEPS + 1))
    assert len(in_mlflow(tmp_path)["reward.style"]) == STEPS + 1


def test_mlflow_takes_whatever_a_part_of_a_reward_is_called(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    write_json(tmp_path / "run.json", {"name": "a_run"})
    JsonLines(tmp_path / "metrics.jsonl").append([{"step": 1, "reward/exact, 100 %": 1.0, "reward/" + 300 * "x": 2.0}])
    found = follow(tmp_path, ["mlflow"], lambda: True, print, None)["mlflow"]
    assert found == {"sent": 1, "dropped": 0, "complaint": ""}
    assert set(in_mlflow(tmp_path)) == {"reward.exact_ 100 _", "reward." + 243 * "x"}
