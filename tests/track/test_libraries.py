import subprocess
import sys
from importlib import util

import pytest

from fastgrpo.track import libraries, require_trackers


def test_a_tracker_that_there_is_not_gets_near_names():
    with pytest.raises(
        ValueError, match=r"--track wandbb: no such tracker, did you mean wandb\?.*tensorboard, trackio"
    ):
        require_trackers(["wandbb"])


def test_a_missing_library_gets_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(libraries, "find_spec", lambda name: None if name == "trackio" else util.find_spec(name))
    with pytest.raises(ValueError, match=r"pip install 'fastgrpo\[trackio\]'"):
        require_trackers(["trackio"])


@pytest.mark.parametrize(
    "content, name, reason",
    [
        (None, "Mine", "there is no"),
        ("class Mine: ...", "Mine", "Mine in .* lacks start, log, rollouts, close"),
        ("Mine = 3", "Mine", "Mine in .* is no class"),
        ("1 / 0", "Mine", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_tracker_of_ones_own_that_cannot_work_is_refused(tmp_path, content, name, reason):
    path = tmp_path / "mine.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=reason):
        require_trackers([f"{path}:{name}"])


def test_two_trackers_of_one_name_are_refused_and_one_twice_is_one(tmp_path):
    methods = "def start(self, run): ...\n    log = rollouts = close = start\n"
    for name in ("a", "b"):
        (tmp_path / f"{name}.py").write_text(f"class Mine:\n    {methods}class wandb:\n    {methods}")
    require_trackers([f"{tmp_path}/a.py:Mine", f"{tmp_path}/a.py:Mine"])
    with pytest.raises(ValueError, match=r"a.py:Mine and .*b.py:Mine are both called Mine"):
        require_trackers([f"{tmp_path}/a.py:Mine", f"{tmp_path}/b.py:Mine"])


def test_an_unknown_tracker_is_refused_before_weights_load(train, capfd):
    for also in ([], ["--dry_run"]):
        assert train("--track", "tensorbord", *also) == 2
        assert "did you mean tensorboard?" in capfd.readouterr().err
    assert not (train.folder / "run.json").exists()


def test_the_process_of_the_trackers_does_without_torch():
    """It would take the memory of a second trainer."""
    code = "import sys, fastgrpo.track.__main__; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
