"""A conversation with a sandbox: one test is asked after the other, and the answers are only bytes."""

import contextlib
import marshal
import os
import resource
import secrets
import select
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from typing import Any, Self

from fastgrpo.rewards.sandbox import inside
from fastgrpo.rewards.sandbox.command import ENVIRONMENT, NO_SANDBOX, SandboxError, SandboxName, command_of

MAX_BYTES = 16 * 2**20
"""Most that a test's output, errors or value may be, and a file that it writes."""
START_S = 20.0
ANSWER_S = 1.0  # beyond the test's own time

_started: set[str] = set()  # sandboxes that have worked in this process


@dataclass(frozen=True)
class Answer:
    """How a test's process ended, and what it wrote."""

    status: int  # its exit code, minus the number of the signal that ended it, or `inside.TIMED_OUT`
    output: bytes
    errors: bytes
    value: bytes
    token: bytes  # that the test's process writes as its value when it has come to the end of assertions


class Ended(Exception):
    """The sandbox has ended, or says nothing more."""


class Session:
    """A program in a sandbox, as a context. On leaving it nothing of it is left, processes and files."""

    def __init__(self, program: str, memory_gib: float, sandbox: SandboxName) -> None:
        self._memory_bytes = allowed_bytes(memory_gib)
        self._program, (self._sandbox, self._command) = program, command_of(sandbox)
        self._folder: str | None = None

    def __enter__(self) -> Self:
        is_bare = self._sandbox == "rlimits"
        if is_bare:
            self._folder = tempfile.mkdtemp(prefix="fastgrpo_program_")
            if os.getuid() == 0:
                os.chown(self._folder, inside.NOBODY, inside.NOBODY)
        with tempfile.TemporaryFile() as errors:
            self._process = subprocess.Popen(
                self._command,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=ENVIRONMENT,
                cwd=self._folder or "/",
                start_new_session=True,
            )
            try:
                self._start(is_bare, errors)
            except BaseException:
                self._end()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def ask(self, test: tuple[str, Any], timeout_s: float) -> Answer:
        """What became of a test. Raises Ended, and ValueError for arguments that cannot be sent."""
        until, token = time.monotonic() + timeout_s + ANSWER_S, secrets.token_bytes(16)
        try:
            request = marshal.dumps((*test, token, timeout_s))
        except ValueError as error:
            raise ValueError(f"arguments must be numbers, texts, lists and dicts: {error}") from None
        self._write(request, until)
        status, *sizes = inside.REPLY.unpack(self._read(inside.REPLY.size, until))
        if max(sizes) > MAX_BYTES:
            raise Ended
        output, errors, value = (self._read(size, until) for size in sizes)
        return Answer(status, output, errors, value, token)

    def _start(self, is_bare: bool, errors: Any) -> None:
        setup = {
            "program": self._program,
            "memory_bytes": self._memory_bytes,
            "max_bytes": MAX_BYTES,
            "drop_root": is_bare,
        }
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
        until = time.monotonic() + START_S
        try:
            self._write(marshal.dumps(setup), until)
            if self._read(len(inside.READY), until) == inside.READY:
                _started.add(self._sandbox)
                return
        except Ended:
            pass
        self._end()
        errors.seek(0)
        said = errors.read(4000).decode("utf-8", "replace").strip()
        # One that has started before costs a verdict and not the run: the machine may be out of something for a moment.
        raise (RuntimeError if self._sandbox in _started else SandboxError)(
            f"the sandbox {self._sandbox} did not start: {said or 'it said nothing'}. {HINTS[self._sandbox]}"
        )

    def _write(self, data: bytes, until: float) -> None:
        assert self._process.stdin is not None
        view = memoryview(data)
        while view:
            self._wait(self._process.stdin.fileno(), select.POLLOUT, until)
            try:
                view = view[os.write(self._process.stdin.fileno(), view) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise Ended from None

    def _read(self, size: int, until: float) -> bytes:
        assert self._process.stdout is not None
        found = bytearray()
        while len(found) < size:
            self._wait(self._process.stdout.fileno(), select.POLLIN, until)
            try:
                data = os.read(self._process.stdout.fileno(), min(size - len(found), 1 << 20))
            except BlockingIOError:
                continue
            if not data:
                raise Ended
            found += data
        return bytes(found)

    def _wait(self, descriptor: int, event: int, until: float) -> None:
        poll = select.poll()
        poll.register(descriptor, event)
        if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
            raise Ended

    def _end(self) -> None:
        if self._process.returncode is None:  # not reaped: its number is still its own
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


HINTS = {
    "bwrap": f"It needs bubblewrap 0.7 or newer and, in a container, user namespaces or CAP_SYS_ADMIN. {NO_SANDBOX}",
    "nsjail": f"In a container it needs user namespaces or CAP_SYS_ADMIN. {NO_SANDBOX}",
    "rlimits": "Run as another user, or install bubblewrap",
}


def allowed_bytes(memory_gib: float) -> int:
    """The limit in bytes. Raises ValueError if this process has less itself."""
    wanted = int(memory_gib * 2**30)
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    if wanted <= 0 or (most != resource.RLIM_INFINITY and wanted > most):
        raise ValueError(
            f"memory_gib must be more than 0 and at most what the reward's own process has, {most / 2**30:g} GiB "
            f"(--reward.memory_limit_gib), got {memory_gib:g}"
            if wanted > 0
            else f"memory_gib must be more than 0, got {memory_gib:g}"
        )
    return wanted
