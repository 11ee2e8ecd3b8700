"""Ranks that torchrun started, in sessions of their own, end with what asked for them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.harness import child_environment
from bench.torchrun import run_to_end, torchrun
from tests.bench.test_gpu_runner import is_gone, wait_until

RANK = """
import os, sys, time
open(os.path.join(sys.argv[1], "rank" + os.environ["RANK"]), "w").write(str(os.getpid()) + ".")
time.sleep(120)
"""


@pytest.fixture
def command(tmp_path) -> list[str]:
    (tmp_path / "rank.py").write_text(RANK)
    return torchrun(2, str(tmp_path / "rank.py"), str(tmp_path))


def all_there(folder: Path) -> bool:
    return all((folder / f"rank{i}").exists() and (folder / f"rank{i}").read_text().endswith(".") for i in range(2))


def pids(folder: Path) -> list[int]:
    return [int((folder / f"rank{i}").read_text()[:-1]) for i in range(2)]


def test_ranks_end_with_a_killed_benchmark(tmp_path, command):
    code = f"import os; from bench.torchrun import run_to_end; run_to_end({command!r}, os.environ)"
    benchmark = subprocess.Popen([sys.executable, "-c", code], env=child_environment(), cwd=tmp_path)
    wait_until(lambda: all_there(tmp_path), 60)
    assert not any(is_gone(pid) for pid in pids(tmp_path))
    benchmark.kill()
    benchmark.wait()
    wait_until(lambda: all(is_gone(pid) for pid in pids(tmp_path)))


def test_ranks_end_at_the_timeout_and_an_exit_code_is_handed_on(tmp_path, command):
    (tmp_path / "rank.py").write_text(RANK.replace("120", "int(sys.argv[2])"))
    with pytest.raises(subprocess.TimeoutExpired):
        run_to_end([*command, "120"], os.environ, timeout_s=12)
    assert all_there(tmp_path)
    wait_until(lambda: all(is_gone(pid) for pid in pids(tmp_path)))
    done = run_to_end([sys.executable, "-c", "print(1); exit(3)"], os.environ, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (3, "1\n")
