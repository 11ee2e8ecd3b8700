"""The work of a rank that only samples: it runs a vLLM server, and starts it again when it ends or hangs."""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from fastgrpo.command_line import exit_codes
from fastgrpo.command_line.ending import do_nothing, handle
from fastgrpo.config import Config
from fastgrpo.ranks import Role, meet
from fastgrpo.ranks.children import ending_with_parent
from fastgrpo.ranks.one_machine import LOOPBACK, is_on_one_machine
from fastgrpo.rollout.servers.client import url_of
from fastgrpo.rollout.servers.command import server_command, server_environment
from fastgrpo.rollout.servers.key import BEGIN, OVER, found_key
from fastgrpo.rollout.servers.watch import host_towards
from fastgrpo.rollout.vllm.plugin import END_TOGETHER

POLL_S = 0.2
ALIVE_S = 2.0
AFTER_TRAINER_S = 2.0  # the trainer must exit first: a launcher ends all ranks when one exits
REAP_S = 10.0
LOG_CHARACTERS = 2000  # of the end of a server's log, in which the reason of its end is looked for


_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # past the environment's proxies


def address_key(index: int) -> str:
    """Key of the store that has a server's address."""
    return f"servers/{index}"


def addresses(store: dist.Store, count: int) -> list[str]:
    """The addresses of the launch's servers; waits until each has one."""
    return [store.get(address_key(index)).decode() for index in range(count)]


def run_server(config: Config, role: Role, device_type: str) -> int:
    """Runs until the end, and returns the exit code: 0 when the run is over, 1 if trainer or server failed."""
    handle(do_nothing)  # the trainer ends a run, and tells this rank
    store = meet(timedelta(seconds=config.parallel.timeout_s))
    index, shard = divmod(role.index, config.rollout.tensor_parallel)
    try:
        text = _wait_for(store, BEGIN)
        if text is None:
            return exit_codes.DONE
        if shard > 0:  # another rank's server uses this rank's GPU
            _wait_for(store, OVER)
            return exit_codes.DONE
        server = _OwnServer(config, index, found_key(text.decode(), servers_folder(config)), device_type)
        store.set(address_key(index), server.url)
        return server.run(store)
    except (ValueError, OSError) as error:
        print(f"fastgrpo: server {index}: {error}", file=sys.stderr, flush=True)
        return exit_codes.FAILED
    except dist.DistError:
        time.sleep(AFTER_TRAINER_S)
        return exit_codes.FAILED  # the trainer is gone: its error message and its exit code are those of the launch


def servers_folder(config: Config) -> Path:
    """Where servers write what they print."""
    return Path(config.run_dir) / "engines"


def _wait_for(store: dist.Store, key: str) -> bytes | None:
    """The value of a key, or None when the run is over."""
    while not store.check([key]):
        if store.check([OVER]):
            return None
        time.sleep(POLL_S)
    return None if key == OVER else store.get(key)


class _OwnServer:
    """Runs a server's process, and another one when it ended or gave no sign of life for too long."""

    def __init__(self, config: Config, index: int, key: str, device_type: str) -> None:
        host = own_host()
        port = _free_port(host)
        self.url, self._key = url_of(host, port), key
        on_cpu = device_type == "cpu"
        self._words = server_command(config, host, port, on_cpu)
        inherited = _environment(config.rollout.tensor_parallel)
        self._environment = {**inherited, **server_environment(key, config, on_cpu), END_TOGETHER: "1"}
        # A sync may keep the engine from answering for as long as it may last.
        self._silent_s = max(config.deadline.stall_s, config.deadline.sync_s)
        self._start_s = config.deadline.start_s
        self._log = servers_folder(config) / f"server_{index}.log"
        self._log.parent.mkdir(parents=True, exist_ok=True)

    def run(self, store: dist.Store) -> int:
        """Returns the exit code once the run is over. Raises ValueError for a server that does not become ready."""
        self._start()
        self._was_ready = False
        try:
            while not store.check([OVER]):
                if self._child.poll() is not None:
                    self._start_again(f"ended by {self._how()}")
                elif time.monotonic() - self._heard > (self._silent_s if self._ready else self._start_s):
                    self._start_again("gave no sign of life")
                self._look()
                time.sleep(POLL_S)
            return exit_codes.DONE
        finally:
            self._kill()

    def _start(self) -> None:
        with self._log.open("ab") as log:
            self._child = subprocess.Popen(
                ending_with_parent(self._words), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                env=self._environment, start_new_session=True,
            )  # fmt: skip
        self._ready, self._heard, self._asked = False, time.monotonic(), 0.0

    def _start_again(self, why: str) -> None:
        self._kill()
        if not self._was_ready:
            printed = self._log.read_text(errors="replace")[-LOG_CHARACTERS:].strip().splitlines()
            last = printed[-1] if printed else "it printed nothing"
            raise ValueError(f"its process {why} before it was ready: {last} (the whole log is {self._log})")
        self._start()

    def _look(self) -> None:
        """Notes whether the engine answers. A request that it does not answer is given up after a moment."""
        now = time.monotonic()
        if now - self._asked < ALIVE_S:
            return
        self._asked = now
        request = urllib.request.Request(f"{self.url}/inference/fastgrpo/alive")
        request.add_header("Authorization", f"Bearer {self._key}")
        with contextlib.suppress(OSError, http.client.HTTPException), _DIRECT.open(request, timeout=ALIVE_S) as answer:
            if answer.status == 200:
                self._ready, self._was_ready, self._heard = True, True, time.monotonic()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)  # its workers too, even if it has died itself
        with contextlib.suppress(subprocess.TimeoutExpired):  # then the kernel ends it later
            self._child.wait(REAP_S)

    def _how(self) -> str:
        code = self._child.returncode
        return f"signal {-code}" if code < 0 else f"exit code {code}"


def own_host() -> str:
    """Where ranks of this launch find this one."""
    return LOOPBACK if is_on_one_machine() else host_towards([f"http://{os.environ['MASTER_ADDR']}"])


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as probe:
        return int(probe.getsockname()[1])


def _environment(num_gpus: int) -> dict[str, str]:
    """The environment of a server, which is a launch of its own: without this launch's variables, with its GPUs."""
    launch = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK")
    environment = {k: v for k, v in os.environ.items() if k not in launch and not k.startswith("TORCHELASTIC_")}
    first = int(os.environ.get("LOCAL_RANK", 0))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible is not None else [str(i) for i in range(first + num_gpus)]
    return {**environment, "CUDA_VISIBLE_DEVICES": ",".join(gpus[first : first + num_gpus])}
