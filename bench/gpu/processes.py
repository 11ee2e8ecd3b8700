"""Processes that end at a limit and when the runner ends, with all processes that they started."""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from bench.gpu.record import Answer
from bench.gpu.steps import Step

ROOT = Path(__file__).resolve().parents[2]
CARRIED = ROOT / "build" / "gpu" / "site"
"""Folder where the wheels that were brought along are installed."""
START_S = 120.0
"""Time to import torch, on a cold disk."""


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """This environment, with the checkout's packages importable as they are installed, and with hubs offline."""
    mapped = ROOT / "build" / "gpu" / "packages"
    mapped.mkdir(parents=True, exist_ok=True)
    link = mapped / "fastgrpo_recipes"
    if not link.is_symlink():
        link.symlink_to(ROOT / "recipes")
    paths = [str(ROOT), str(ROOT / "kernels"), str(mapped), str(CARRIED), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in paths if p),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
        **extra,
    }


_RUNNER_ENDS, _HELD_BY_RUNNER = os.pipe()  # only the runner has the second end: it closes when the runner is killed


class Group(subprocess.Popen[str]):
    """A command and all processes that it starts, as a process group. Raises OSError if it cannot be started.

    A second member of the group, the guard, waits for the runner's end and then kills the group. While it lives, no
    other group can have this number.
    """

    def __init__(self, command: Sequence[str], log: IO[str], extra: Mapping[str, str], **streams: Any) -> None:
        super().__init__(command, cwd=ROOT, env=environment(extra), text=True, stderr=log, process_group=0, **streams)
        try:
            self._guard = subprocess.Popen(
                ["/bin/sh", "-c", "read _; kill -KILL 0"], stdin=_RUNNER_ENDS, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL, env={}, process_group=self.pid,
            )  # fmt: skip
        except OSError:
            os.killpg(self.pid, signal.SIGKILL)
            self.wait()
            raise

    def end(self) -> None:
        os.killpg(self.pid, signal.SIGKILL)
        self._guard.wait()
        with contextlib.suppress(subprocess.TimeoutExpired):  # a process that hangs in the driver cannot be killed
            self.wait(10)


def run_program(step: Step, left_s: float, log: IO[str]) -> Answer:
    """Runs a step's command within its limit and ``left_s``."""
    started = time.monotonic()
    limit_s = min(step.limit_s, left_s)
    try:
        process = Group(step.arguments, log, dict(step.environment), stdout=log, stdin=subprocess.DEVNULL)
    except OSError as error:
        return Answer(step.name, "failed", time.monotonic() - started, f"cannot be started: {error}")
    try:
        code = process.wait(limit_s)
        why = "" if code == 0 else _ending(code)
    except subprocess.TimeoutExpired:
        why = f"ran past {limit_s:.0f} s"
    process.end()  # also processes that it has left running
    return Answer(step.name, "failed" if why else "passed", time.monotonic() - started, why)


class SubjectsProcess:
    """The worker process. It is started when it is needed, and anew after a failure, since CUDA errors persist."""

    def __init__(self, results: Path, log: IO[str], command: Sequence[str] = ("-m", "bench.gpu.worker")) -> None:
        self.log = log
        self._command = [sys.executable, *command, str(results)]
        self._process: Group | None = None

    def run(self, step: Step, left_s: float) -> Answer:
        """Runs a step within its limit, which begins when the worker is ready, and in any case within ``left_s``."""
        started = time.monotonic()
        if self._process is not None and self._process.poll() is not None:  # it ended after its last reply
            self.close()
        try:
            if self._process is None:
                self._start(min(START_S, left_s))
            self._ask(step.arguments)
            reply = self._reply(min(step.limit_s, started + left_s - time.monotonic()))
            failed: dict[str, str] = reply["failed"]
            first = next((f"{row}: {why}" for row, why in failed.items()), f"exit code {reply['code']}")
            why = first if reply["code"] else ""
        except (_NoReply, OSError) as error:
            failed, why = {}, f"{error} after {time.monotonic() - started:.0f} s"
        if why:
            self.close()
        return Answer(step.name, "failed" if why else "passed", time.monotonic() - started, why, failed)

    def _start(self, limit_s: float) -> None:
        self._process = Group(self._command, self.log, {}, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._reply(limit_s)

    def _ask(self, arguments: Sequence[str]) -> None:
        assert self._process is not None and self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has just died: the missing reply shows it
            self._process.stdin.write(json.dumps(list(arguments)) + "\n")
            self._process.stdin.flush()

    def _reply(self, limit_s: float) -> dict[str, Any]:
        assert self._process is not None and self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(max(limit_s, 0.0)):
                raise _NoReply("it hung, and was killed,")
        line = self._process.stdout.readline()
        if not line:
            raise _NoReply(f"its process died ({_ending(self._process.wait())})")
        return json.loads(line)

    def close(self) -> None:
        if self._process is not None:
            self._process.end()
            self._process = None


class _NoReply(RuntimeError):
    """The worker did not reply; the message says why."""


def _ending(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
