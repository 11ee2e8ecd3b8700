"""What a rank does that only samples: it keeps an engine process running, and starts another when told to."""

import contextlib
import ctypes
import os
import pickle
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from fastgrpo.config import Config
from fastgrpo.ranks import Role, meet
from fastgrpo.rollout.remote import messages as m
from fastgrpo.rollout.remote.process import Boot, this_process
from fastgrpo.rollout.spec import EngineSpec

POOL, OVER = "engine_pool", "over"
"""Keys of the launch's store: where the pool listens; that the run has ended."""

TICK_S = 0.2
AFTER_TRAINER_S = 2.0  # launchers end all ranks when one exits: the first must be the trainer
REAP_S = 10.0
LOG_CHARACTERS = 2000  # characters of an engine's log that explain its end


def supervise(config: Config, role: Role, device_type: str) -> int:
    """Returns the exit code: 0 when the run is over, 1 when the trainer was lost."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # the trainer ends a run, and tells us
    store = meet(timedelta(seconds=config.parallel.timeout_s))
    index, shard = divmod(role.index, config.rollout.tensor_parallel)
    try:
        address = _wait_for(store, POOL)
        if address is None:
            return 0
        if shard > 0:  # another rank's engine has this one's GPU
            _wait_for(store, OVER)
            return 0
        return _Supervisor(m.Address.decode(address.decode()), index, config, device_type).run()
    except (dist.DistError, EOFError, OSError):
        time.sleep(AFTER_TRAINER_S)
        return 1  # the trainer is gone: its own error is the one to read, and its exit code that of the launch


def _wait_for(store: dist.Store, key: str) -> bytes | None:
    """The value, or None once the run is over."""
    while not store.check([key]):
        if store.check([OVER]):
            return None
        time.sleep(TICK_S)
    return None if key == OVER else store.get(key)


class _Supervisor:
    def __init__(self, address: m.Address, index: int, config: Config, device_type: str) -> None:
        self.boot = Boot(address, index, EngineSpec(config, device_type, "own_process"))
        self.log = Path(config.run_dir) / "engines" / f"engine_{index}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.connection = m.call(address, m.Hello(index, True, this_process()))
        self.child: Any = None
        self.told = True  # the pool knows of the child's end

    def run(self) -> int:
        self._start()
        try:
            while True:
                if self.connection.poll(TICK_S):
                    message = self.connection.recv()
                    if isinstance(message, m.End):
                        return 0
                    self._kill()
                    self._start()
                elif self.child.poll() is not None and not self.told:
                    self.told = True
                    self.connection.send(m.Exited(self._process(), self._why()))
        finally:
            self._kill()

    def _start(self) -> None:
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(
                [sys.executable, "-m", "fastgrpo.rollout.remote.process"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(self.boot.spec.config.rollout.tensor_parallel),
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        self.told = False
        with contextlib.suppress(BrokenPipeError):  # it died at once, which is seen later
            self.child.stdin.write(pickle.dumps(self.boot))
            self.child.stdin.close()

    def _kill(self) -> None:
        if self.child is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.child.pid, signal.SIGKILL)  # with the workers that it started, also if it died itself
            with contextlib.suppress(subprocess.TimeoutExpired):  # the kernel lets go of it when it can
                self.child.wait(REAP_S)
        self.told = True

    def _process(self) -> str:
        return this_process().replace(f"pid {os.getpid()}", f"pid {self.child.pid}")

    def _why(self) -> str:
        code = self.child.returncode
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        words = self.log.read_text(errors="replace")[-LOG_CHARACTERS:].strip().splitlines()
        return f"{how}; {words[-1] if words else 'it printed nothing'} (all of it is in {self.log})"


def _environment(num_gpus: int) -> dict[str, str]:
    """An engine is a launch of its own: nothing of ours may reach it, but its GPUs."""
    ours = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK")
    environment = {k: v for k, v in os.environ.items() if k not in ours and not k.startswith("TORCHELASTIC_")}
    first = int(os.environ.get("LOCAL_RANK", 0))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible is not None else [str(i) for i in range(first + num_gpus)]
    return {**environment, "CUDA_VISIBLE_DEVICES": ",".join(gpus[first : first + num_gpus])}


def _die_with_parent() -> None:
    """An engine whose supervisor was killed would hold its GPU."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
