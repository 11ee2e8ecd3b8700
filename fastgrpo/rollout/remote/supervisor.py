"""The work of a rank that only samples: it keeps an engine process running, and starts another when told to."""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import time
from datetime import timedelta
from multiprocessing import AuthenticationError
from pathlib import Path

import torch.distributed as dist

from fastgrpo.command_line import exit_codes
from fastgrpo.command_line.ending import do_nothing, handle
from fastgrpo.config import Config
from fastgrpo.ranks import Role, meet
from fastgrpo.ranks.children import die_with_parent
from fastgrpo.rollout.engine_spec import EngineSpec
from fastgrpo.rollout.remote import messages as m
from fastgrpo.rollout.remote.address import Address, find
from fastgrpo.rollout.remote.process import Boot, this_process

POOL, OVER = "engine_pool", "over"
"""Keys of the launch's store: the pool's address; a mark that the run has ended."""

POLL_S = 0.2
AFTER_TRAINER_S = 2.0  # the trainer must exit first: a launcher ends all ranks when one exits
REAP_S = 10.0
LOG_CHARACTERS = 2000  # of the end of an engine's log, in which the reason of its end is looked for


def supervise(config: Config, role: Role, device_type: str) -> int:
    """Runs until the end, and returns the exit code: 0 when the run is over, 1 when the trainer was lost."""
    handle(do_nothing)  # the trainer ends a run, and tells this rank
    store = meet(timedelta(seconds=config.parallel.timeout_s))
    index, shard = divmod(role.index, config.rollout.tensor_parallel)
    try:
        address = _wait_for(store, POOL)
        if address is None:
            return exit_codes.DONE
        if shard > 0:  # another rank's engine uses this rank's GPU
            _wait_for(store, OVER)
            return exit_codes.DONE
        return _Supervisor(find(address.decode(), engines_folder(config)), index, config, device_type).run()
    except ValueError as error:
        print(f"fastgrpo: engine {index}: {error}", file=sys.stderr, flush=True)
        return exit_codes.FAILED
    except AuthenticationError:
        print(f"fastgrpo: engine {index}: the pool does not know this rank's secret", file=sys.stderr, flush=True)
        return exit_codes.FAILED
    except (dist.DistError, EOFError, OSError):
        time.sleep(AFTER_TRAINER_S)
        return exit_codes.FAILED  # the trainer is gone: its error message and its exit code are those of the launch


def engines_folder(config: Config) -> Path:
    """Where engines write what they print."""
    return Path(config.run_dir) / "engines"


def _wait_for(store: dist.Store, key: str) -> bytes | None:
    """The value of a key, or None when the run is over."""
    while not store.check([key]):
        if store.check([OVER]):
            return None
        time.sleep(POLL_S)
    return None if key == OVER else store.get(key)


class _Supervisor:
    """Runs an engine's process, and another one when the pool asks for it."""

    def __init__(self, address: Address, index: int, config: Config, device_type: str) -> None:
        self.boot = Boot(address, index, EngineSpec(config, device_type, "own_process"))
        self.log = engines_folder(config) / f"engine_{index}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.connection = m.connect(address, m.Hello(index, True, this_process()))
        self.child: subprocess.Popen[bytes]  # of ``run``
        self.end_reported = False  # whether the pool knows of the child's end

    def run(self) -> int:
        """Returns the exit code once the pool says that the run is over."""
        self.child = self._start()
        try:
            while True:
                if self.connection.poll(POLL_S):
                    message = m.receive(self.connection, from_peer=False)
                    if isinstance(message, m.End):
                        return exit_codes.DONE
                    self._kill()
                    self.child, self.end_reported = self._start(), False
                elif self.child.poll() is not None and not self.end_reported:
                    self.end_reported = True
                    m.send(self.connection, m.Exited(self._process(), self._why()))
        finally:
            self._kill()

    def _start(self) -> "subprocess.Popen[bytes]":
        with self.log.open("ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "fastgrpo.rollout.remote.process"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(self.boot.spec.config.rollout.tensor_parallel),
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        assert child.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died at once: the next poll notices
            child.stdin.write(pickle.dumps(self.boot))
            child.stdin.close()
        return child

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.child.pid, signal.SIGKILL)  # its workers too, even if it has died itself
        with contextlib.suppress(subprocess.TimeoutExpired):  # then the kernel ends it later
            self.child.wait(REAP_S)

    def _process(self) -> str:
        return this_process().replace(f"pid {os.getpid()}", f"pid {self.child.pid}")

    def _why(self) -> str:
        code = self.child.returncode
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        printed = self.log.read_text(errors="replace")[-LOG_CHARACTERS:].strip().splitlines()
        return f"{how}; {printed[-1] if printed else 'it printed nothing'} (the whole log is {self.log})"


def _environment(num_gpus: int) -> dict[str, str]:
    """The environment of an engine, which is a launch of its own: without this launch's variables, with its GPUs."""
    launch = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK")
    environment = {k: v for k, v in os.environ.items() if k not in launch and not k.startswith("TORCHELASTIC_")}
    first = int(os.environ.get("LOCAL_RANK", 0))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible is not None else [str(i) for i in range(first + num_gpus)]
    return {**environment, "CUDA_VISIBLE_DEVICES": ",".join(gpus[first : first + num_gpus])}
