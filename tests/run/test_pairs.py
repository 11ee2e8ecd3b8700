"""Two runs never share a folder."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_of_two_starts_in_one_folder_one_runs_as_if_alone_and_one_is_refused():
    """A pair of each kind; tests/folder_pairs.py does any number of them."""
    command = [sys.executable, "-m", "tests.folder_pairs", "--pairs", "6"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "'winners equal to a run alone': 6" in ended.stdout
