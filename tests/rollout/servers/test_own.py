"""A rank that only samples, with a small program in the place of vLLM."""

import os
import signal
import sys
import threading
import time
from dataclasses import replace

import psutil
import pytest
import torch.distributed as dist

from fastgrpo.config import Config, DeadlineConfig
from fastgrpo.rollout.servers import own
from fastgrpo.rollout.servers.own import OVER, _OwnServer
from tests.rollout.servers.until import until

ANSWERS = """
import http.server, sys
class Alive(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        ok = self.path == "/inference/fastgrpo/alive" and self.headers["Authorization"] == "Bearer sesame"
        self.send_response(200 if ok else 401); self.end_headers()
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Alive).serve_forever()
"""
FAILS = "print('no memory for the cache'); raise SystemExit(3)"


@pytest.fixture
def server_of(tmp_path, monkeypatch):
    """An own server that runs this program, on a thread, and how it ended."""
    started = []

    def make(program: str, **deadlines: float):
        monkeypatch.setattr(own, "ALIVE_S", 0.1)
        monkeypatch.setattr(own, "POLL_S", 0.02)
        monkeypatch.setattr(
            own, "server_command", lambda config, host, port, cpu: [sys.executable, "-c", program, host, str(port)]
        )
        monkeypatch.setattr(own, "server_environment", lambda key, config, cpu: {})
        monkeypatch.setenv("WORLD_SIZE", "1")
        config = replace(Config(), runs_dir=str(tmp_path), deadline=DeadlineConfig(**deadlines))
        server, store, ended = _OwnServer(config, 0, "sesame", "cpu"), dist.HashStore(), []

        def run() -> None:
            try:
                ended.append(server.run(store))
            except ValueError as error:
                ended.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        started.append((store, thread))
        return server, store, ended

    yield make
    for store, thread in started:
        store.set(OVER, "1")
        thread.join(10)


def test_a_server_that_ends_before_it_was_ready_is_told_with_its_last_words(server_of):
    server, _, ended = server_of(FAILS)
    until(lambda: bool(ended))
    assert str(ended[0]).startswith("its process ended by exit code 3 before it was ready: no memory for the cache")
    assert str(server._log) in str(ended[0])


def test_a_server_that_is_killed_is_started_again_at_the_same_address_and_ends_with_the_run(server_of):
    server, store, ended = server_of(ANSWERS)
    until(lambda: hasattr(server, "_child") and server._ready)
    first, url = server._child.pid, server.url
    os.kill(first, signal.SIGKILL)
    until(lambda: server._child.pid != first and server._ready)
    assert server.url == url and not ended
    second = server._child.pid
    store.set(OVER, "1")
    until(lambda: ended == [0])
    assert not psutil.pid_exists(second)


def test_a_server_that_gives_no_sign_of_life_is_killed_and_another_started(server_of):
    server, _, ended = server_of(ANSWERS, stall_s=1.0, sync_s=1.0)
    until(lambda: hasattr(server, "_child") and server._ready)
    first = server._child.pid
    os.kill(first, signal.SIGSTOP)
    began = time.monotonic()
    until(lambda: server._child.pid != first and server._ready)
    assert time.monotonic() - began >= 1.0 and not psutil.pid_exists(first) and not ended


def test_a_server_that_hangs_in_its_start_is_told(server_of):
    _, _, ended = server_of("import time; time.sleep(60)", start_s=0.5)
    until(lambda: bool(ended))
    assert "its process gave no sign of life before it was ready: it printed nothing" in str(ended[0])


def test_its_environment_has_its_own_gpus_and_nothing_of_the_launch(monkeypatch):
    for name, value in {"RANK": "7", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "x", "LOCAL_RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    environment = own._environment(2)
    assert environment["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert not {"RANK", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "LOCAL_RANK"} & environment.keys()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert own._environment(2)["CUDA_VISIBLE_DEVICES"] == "6,7"
