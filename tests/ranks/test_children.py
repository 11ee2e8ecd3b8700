"""Processes that end with their parent."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil

from fastgrpo.ranks.children import ending_with_parent
from tests.rollout.servers.until import until

STARTS = """
import subprocess, sys, time
from fastgrpo.ranks.children import ending_with_parent
child = subprocess.Popen(ending_with_parent(["sleep", "60"]), start_new_session=True)
print(child.pid, flush=True)
time.sleep(60)
"""


def test_a_child_ends_when_its_parent_is_killed():
    with subprocess.Popen([sys.executable, "-c", STARTS], stdout=subprocess.PIPE, text=True) as parent:
        child = psutil.Process(int(parent.stdout.readline()))
        until(lambda: child.name() == "sleep")
        assert child.is_running()
        parent.kill()
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_a_child_whose_parent_is_gone_already_does_not_begin(tmp_path):
    file = tmp_path / "begun"
    command = ending_with_parent(["touch", str(file)])
    command[command.index(str(os.getpid()))] = "1"
    assert subprocess.run(command).returncode == 128 + signal.SIGKILL and not file.exists()


def test_a_program_finds_what_any_other_child_finds(tmp_path):
    """Its arguments, environment, pipes and signals, also from a thread among others."""
    code = (
        "import os, signal, sys; print(sys.argv[1:], os.environ['GIVEN'], open(f'/proc/{os.getpid()}/status').read())"
    )
    command = [sys.executable, "-c", code, "a b", ""]
    found = []

    def run(words) -> None:
        environment = {**os.environ, "GIVEN": "yes"}
        found.append(subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout)

    for words in (command, ending_with_parent(command)):
        thread = threading.Thread(target=run, args=(words,))
        thread.start()
        thread.join()

    def told(text):
        return [line for line in text.splitlines() if line.startswith(("[", "Sig"))]

    assert told(found[0]) == told(found[1]) and "['a b', ''] yes" in found[1]


def test_nothing_runs_python_between_fork_and_exec():
    """It may hang or crash in a process with threads, and these are."""
    root = Path(__file__).parents[2]
    files = [file for folder in ("fastgrpo", "bench", "kernels", "recipes") for file in (root / folder).rglob("*.py")]
    assert not [str(file) for file in files if "preexec_fn" in file.read_text()]
