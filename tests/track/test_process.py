"""The process of the trackers beside a run."""

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fastgrpo.json_lines import JsonLines, write_json
from fastgrpo.track import TrackingProcess
from tests.track.trackers import read

OWN = str(Path(__file__).parent / "trackers.py")


@pytest.fixture
def folder(tmp_path):
    write_json(tmp_path / "run.json", {"name": "a_run"})
    JsonLines(tmp_path / "metrics.jsonl").append({"step": step} for step in range(3))
    return tmp_path


def wait_for(condition):
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < 60
        time.sleep(0.02)


def test_a_run_that_ends_at_once_has_sent_all_its_steps(folder):
    trackers = TrackingProcess(folder, [f"{OWN}:Recording"], print)
    assert trackers.close() == {"Recording": {"sent": 3, "dropped": 0, "complaint": ""}}
    assert trackers.close()["Recording"]["sent"] == 3
    assert trackers.process.returncode == 0


def test_a_run_hears_that_the_process_of_its_trackers_has_died_and_goes_on(folder):
    said = []
    trackers = TrackingProcess(folder, [f"{OWN}:Dying"], said.append)
    wait_for(lambda: said)
    assert "the process of the trackers has ended" in said[0] and "log.txt" in said[0]
    assert trackers.close() == {}


def test_what_a_library_prints_is_in_the_log_and_warnings_are_the_runs(folder):
    said = []
    trackers = TrackingProcess(folder, [f"{OWN}:Printing", f"{OWN}:Raising"], said.append)
    trackers.close()
    wait_for(lambda: said)
    assert said == ["warning, tracker Raising: ConnectionError: no route to step 0"]
    assert (folder / "track" / "log.txt").read_text() == "a library speaks\n" * 3


def test_the_trackers_of_a_killed_run_take_what_it_recorded_and_leave(folder):
    code = f"""import os, time
from pathlib import Path
from fastgrpo.track import TrackingProcess
trackers = TrackingProcess(Path({str(folder)!r}), ["{OWN}:Recording"], print)
print(trackers.process.pid, flush=True)
time.sleep(60)"""
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    trackers = psutil.Process(int(run.stdout.readline()))
    run.kill()
    run.wait()
    _, alive = psutil.wait_procs([trackers], timeout=60)
    assert alive == []
    assert [entry["log"] for entry in read(folder / "recording.jsonl") if "log" in entry] == [0, 1, 2]
    assert json.loads((folder / "track" / "counts.json").read_text())["Recording"]["sent"] == 3
