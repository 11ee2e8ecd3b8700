import shutil
import signal
import sys
import threading
from pathlib import Path

import pytest

from fastgrpo.command_line.ending import ANNOUNCING, put_back
from fastgrpo.train import main
from tests.rewards.server import Server

TINY = Path(__file__).parent / "tiny_recipe.py"


def hear_all() -> None:
    """Undoes what ``nohup`` and a shell's ``&`` mean for this process and its children."""
    for number in ANNOUNCING:
        if signal.getsignal(number) is signal.SIG_IGN:
            usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            put_back({number: usual})


@pytest.fixture(autouse=True)
def answers_to_signals():
    """Signals that announce the end do so, whatever started the tests ignores, and what a test makes of them is over
    with it."""
    before = {number: signal.getsignal(number) for number in ANNOUNCING}
    hear_all()
    yield
    put_back(before)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    """The base folder of the tiny recipe, made once."""
    from tests import tiny_recipe

    base = tmp_path_factory.mktemp("tiny") / "base"
    tiny_recipe.prepare(tiny_recipe.config, base, print)
    return base


@pytest.fixture
def train(tmp_path, tiny_base):
    """Trains the tiny recipe in this process, one rank, in runs/tiny of the test's folder; returns the exit code."""
    runs = tmp_path / "runs"
    shutil.copytree(tiny_base, runs / "tiny" / "base")

    def run(*arguments: str) -> int:
        return main([str(TINY), "--runs_dir", str(runs), *arguments])

    run.folder = runs / "tiny"
    return run


@pytest.fixture
def server(monkeypatch):
    """A local server that scores and judges responses."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(sys.modules["fastgrpo.rewards.reward_model"], "FIRST_PAUSE_S", 0.001)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
