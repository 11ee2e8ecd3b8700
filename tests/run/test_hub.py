"""A hub that cannot be reached: one look-up, then its cache, or a refusal that says what is missing."""

import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from huggingface_hub import constants, is_offline_mode

from fastgrpo.run.hub import require_found
from tests.conftest import TINY

ROOT = Path(__file__).parents[2]


class Hub:
    """Something at an address that counts who comes, says the same to everyone, and hangs up."""

    def __init__(self, answer: bytes) -> None:
        self.visits = 0
        self.answer = answer
        self.server = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.server.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                visitor, _ = self.server.accept()
            except OSError:
                return
            self.visits += 1
            with visitor:
                visitor.recv(65536)
                visitor.sendall(self.answer)


@pytest.fixture
def hub():
    opened = []

    def open_hub(answer: bytes = b"") -> Hub:
        opened.append(Hub(answer))
        return opened[-1]

    yield open_hub
    for one in opened:
        one.server.shutdown(socket.SHUT_RDWR)
        one.server.close()


@pytest.fixture
def client(monkeypatch, tmp_path):
    """The hub's client of this process as if it had just been imported, with an empty cache, at an address."""

    def use(address: str) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")

    return use


def cached(cache: Path, name: str, kind: str, files: Path) -> None:
    """As the hub's client leaves a model or a data set."""
    folder = cache / f"{kind}--{name.replace('/', '--')}"
    shutil.copytree(files, folder / "snapshots" / "0123")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0123")


def fastgrpo(address: str, cache: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {n: v for n, v in os.environ.items() if n not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")}
    environment |= {"HF_ENDPOINT": address, "HF_HUB_CACHE": str(cache)}
    command = [sys.executable, "-m", "fastgrpo", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def test_a_run_without_a_hub_is_refused_after_one_look_up_with_all_that_is_missing(hub, tmp_path):
    unreachable = hub()
    done = fastgrpo(unreachable.address, tmp_path, "train", "simplerl_zoo_qwen2_5_7b", "--ranks", "2")
    assert done.returncode == 2 and unreachable.visits == 1
    (said,) = done.stderr.splitlines()
    assert f"the hub {unreachable.address} cannot be reached" in said
    assert "--model.path Qwen/Qwen2.5-7B and --data.train hkust-nlp/SimpleRL-Zoo-Data:" in said


def test_a_run_of_what_is_in_the_cache_goes_on_without_a_hub_and_without_a_word(hub, tmp_path, tiny_base):
    unreachable, data = hub(), tmp_path / "data"
    data.mkdir()
    shutil.copy(tiny_base / "train.jsonl", data)
    cached(tmp_path / "cache", "us/tiny", "models", tiny_base / "model")
    cached(tmp_path / "cache", "us/sums", "datasets", data)
    settings = ["--model.path", "us/tiny", "--data.train", "us/sums", "--data.held_out", "", "--steps", "1"]
    shutil.copytree(tiny_base, tmp_path / "tiny" / "base")
    arguments = ["train", "--ranks", "1", str(TINY), "--runs_dir", str(tmp_path), *settings]
    done = fastgrpo(unreachable.address, tmp_path / "cache", *arguments)
    assert done.returncode == 0, done.stderr
    assert unreachable.visits == 1 and done.stderr == ""


def test_what_a_reachable_hub_answers_does_not_matter_here(hub, client):
    reachable = hub(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    client(reachable.address)
    require_found({"us/tiny": "--model.path"}, {"us/sums": "--data.train"})
    assert reachable.visits == 1 and not is_offline_mode()


@pytest.mark.parametrize("name", ["tests/recipes", "runs/mine/base/model", "./us/tiny", "us/sums.jsonl", ""])
def test_nobody_asks_for_what_is_not_of_the_hub(hub, client, monkeypatch, name):
    monkeypatch.chdir(ROOT)
    unreachable = hub()
    client(unreachable.address)
    require_found({name: "--model.path"}, {name: "--data.train"})
    assert unreachable.visits == 0


def test_only_what_the_cache_lacks_is_named(hub, client, tmp_path, tiny_base):
    cached(tmp_path / "cache", "us/tiny", "models", tiny_base / "model")
    client(hub().address)
    with pytest.raises(ValueError, match=r"does not hold --data\.train us/sums: give a local file"):
        require_found({"us/tiny": "--model.path"}, {"us/sums": "--data.train"})
    assert is_offline_mode() and os.environ["HF_HUB_OFFLINE"] == "1"


def test_a_hub_that_is_not_to_be_asked_is_not(hub, client, monkeypatch):
    unreachable = hub()
    client(unreachable.address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"cannot be reached \(HF_HUB_OFFLINE is set\)"):
        require_found({"us/tiny": "--model.path"}, {})
    assert unreachable.visits == 0
