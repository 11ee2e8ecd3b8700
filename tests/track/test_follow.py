"""What trackers get of a run's folder, whatever they do and whatever was killed when."""

import fcntl
import itertools
import json
import threading
import time

import pytest

from fastgrpo.json_lines import JsonLines, write_json
from fastgrpo.track import feeder
from fastgrpo.track.follow import follow, tracked_run
from fastgrpo.track.recorded import Lines, recorded_steps
from tests.track.trackers import Recording, read

OWN = __file__.replace("test_follow.py", "trackers.py")


@pytest.fixture
def folder(tmp_path):
    write_json(tmp_path / "run.json", {"name": "a_run", "config": {"seed": 1, "data.levels": [3]}})
    record(tmp_path, range(3))
    return tmp_path


def record(folder, steps):
    for step in steps:
        rows = [{"step": step, "response": f"{step}, {n}"} for n in range(2 if step else 0)]
        JsonLines(folder / "rollouts.jsonl").append(rows)
        JsonLines(folder / "metrics.jsonl").append([{"step": step, "reward": 0.5, "step_s": 2.0, "kl": float("nan")}])


def send(folder, name="Recording", close_s=None, run_is_over=lambda: True):
    said = []
    return follow(folder, [f"{OWN}:{name}"], run_is_over, said.append, close_s)[name], said


def logged(folder, name="recording"):
    return [entry["log"] for entry in read(folder / f"{name}.jsonl") if "log" in entry]


def test_a_tracker_gets_every_step_its_numbers_and_tables_and_the_settings(folder):
    record(folder, range(3, 21))
    counts, said = send(folder)
    assert counts == {"sent": 21, "dropped": 0, "complaint": ""} and said == []
    entries = read(folder / "recording.jsonl")
    assert entries[0]["settings"] == {"seed": 1, "data.levels": "[3]", "name": "a_run", "algorithm": "null"}
    assert [e["metrics"] for e in entries if "log" in e] == [{"reward": 0.5, "step_s": 2.0}] * 21
    tables = {e["rollouts"]: e["rows"] for e in entries if "rollouts" in e}
    assert tables == {s: [{"step": s, "response": f"{s}, {n}"} for n in range(2)] for s in (1, 10, 20)}
    times = [e["unix_s"] for e in entries if "log" in e]
    assert [b - a for a, b in itertools.pairwise(times)] == pytest.approx([2.0] * 20)
    assert entries[-1] == {"close": True}


def test_a_curve_that_is_there_goes_on_without_a_gap_or_a_repeat(folder):
    send(folder)
    record(folder, [3, 4])
    assert send(folder)[0]["sent"] == 2
    assert logged(folder) == [0, 1, 2, 3, 4]


def test_steps_that_a_killed_run_sent_and_that_are_done_once_more_are_not_doubled(folder):
    send(folder)
    JsonLines(folder / "metrics.jsonl").keep_until(1)
    JsonLines(folder / "rollouts.jsonl").keep_until(1)
    record(folder, [2, 3])
    send(folder)
    assert logged(folder) == [0, 1, 2, 3]


def test_steps_are_sent_while_the_run_goes_on(folder):
    def run_is_over():
        done = logged(folder) if (folder / "recording.jsonl").exists() else []
        if done == [0, 1, 2]:
            record(folder, [3])
        return done == [0, 1, 2, 3]

    assert send(folder, run_is_over=run_is_over)[0]["sent"] == 4


def test_a_tracker_that_raises_on_every_call_drops_every_step_and_says_so_once(folder):
    counts, said = send(folder, "Raising")
    assert (counts["sent"], counts["dropped"]) == (0, 3)
    assert said == ["warning, tracker Raising: ConnectionError: no route to step 0"]


def test_a_tracker_that_hangs_is_left_at_the_deadline_and_its_steps_are_counted(folder):
    counts, said = send(folder, "Sleeping", close_s=0.2)
    assert (counts["sent"], counts["dropped"]) == (0, 3)
    assert len(said) == 1 and "the run has ended before it had taken everything" in said[0]
    assert json.loads((folder / "track" / "counts.json").read_text()) == {"Sleeping": counts}


def test_a_tracker_that_is_silent_is_complained_of_while_the_run_goes_on(folder, monkeypatch):
    monkeypatch.setattr(feeder, "SILENCE_S", 0.0)
    said = []
    follow(folder, [f"{OWN}:Sleeping"], lambda: bool(said), said.append, 0.0)
    assert said == ["warning, tracker Sleeping: it does not answer"]


class FailsFor(Recording):
    """Raises in its first calls."""

    def __init__(self, starts=0, logs=0):
        self.starts, self.logs = starts, logs

    def start(self, run):
        self.starts -= 1
        if self.starts >= 0:
            raise ConnectionError
        return super().start(run)

    def log(self, step, metrics, unix_s):
        self.logs -= 1
        if self.logs >= 0:
            raise ConnectionError
        super().log(step, metrics, unix_s)


def feed(folder, tracker, monkeypatch, until):
    """A feeder whose pauses take no time, until a condition holds."""
    over = threading.Event()
    monkeypatch.setattr(feeder, "FIRST_PAUSE_S", 0.0)
    fed = feeder.Feeder("own", lambda: tracker, tracked_run(folder), over, lambda text: None)
    fed.start()
    while not until(fed):
        time.sleep(0.01)
    over.set()
    fed.join()
    return fed


@pytest.mark.parametrize("failures", [{"starts": 5}, {"logs": feeder.TRIES - 1}])
def test_a_tracker_that_was_down_for_a_while_loses_nothing(folder, monkeypatch, failures):
    fed = feed(folder, FailsFor(**failures), monkeypatch, lambda fed: fed.sent == 3)
    assert (fed.dropped, logged(folder, "failsfor")) == (0, [0, 1, 2])


def test_a_step_that_fails_again_and_again_is_dropped_for_those_after_it(folder, monkeypatch):
    fed = feed(folder, FailsFor(logs=feeder.TRIES), monkeypatch, lambda fed: fed.reached == 2)
    assert (fed.sent, fed.dropped, logged(folder, "failsfor")) == (2, 1, [1, 2])


class WithoutTables(Recording):
    def rollouts(self, step, rows):
        raise TypeError("no tables here")


def test_a_table_that_fails_does_not_take_its_step_with_it(folder, monkeypatch):
    fed = feed(folder, WithoutTables(), monkeypatch, lambda fed: fed.reached == 2)
    assert (fed.dropped, logged(folder, "withouttables")) == (0, [0, 1, 2])
    assert fed.complaint == "TypeError: no tables here"


def test_two_processes_do_not_send_the_same_run_to_a_tracker(folder):
    (folder / "track").mkdir()
    with (folder / "track" / "Recording.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        counts, said = send(folder)
    assert counts["dropped"] == 3 and "another process" in said[0]
    assert not (folder / "recording.jsonl").exists()


def test_a_line_that_is_half_written_waits_for_its_other_half(tmp_path):
    path, over = tmp_path / "metrics.jsonl", threading.Event()
    path.write_text('{"step": 1}\n{"st')
    lines = Lines(path)
    assert list(lines.new()) == [{"step": 1}] and list(lines.new()) == []
    over.set()
    assert [step.number for step in recorded_steps(tmp_path, over)] == [1]
    path.write_text('{"step": 1}\n{"step": 2}\n')
    assert list(lines.new()) == [{"step": 2}]


def test_the_id_of_a_run_stays(folder):
    assert tracked_run(folder).id == tracked_run(folder).id != ""
