"""The process that judges, which only ``VerifierPool`` starts.

It may hang, die or be killed at any moment: every verdict is written to the pool at once.
"""

import ctypes
import json
import os
import pickle
import resource
import signal
import sys
from typing import BinaryIO

from fastgrpo.command_line.ending import do_nothing, handle
from fastgrpo.rewards.pool import wire
from fastgrpo.rewards.pool.judge import Judge, complaint, described
from fastgrpo.rewards.pool.load import load_reward
from fastgrpo.rewards.pool.serve import serve, serve_async

PR_SET_PDEATHSIG = 1


def main() -> None:
    requests, replies = _take_pipes()
    message = wire.read_frame(requests)
    if message is not None:
        setup: wire.Setup = pickle.loads(message[1])
        _die_with(setup.parent_pid)
        handle(do_nothing)  # the trainer may still need verdicts
        signal.signal(signal.SIGXCPU, signal.SIG_DFL)  # its own limit, of ``CpuLimit``
        _limit_memory(setup.memory_limit_gib)
        judge = _start(setup, replies)
        if judge is not None:
            (serve_async if judge.signature.is_async else serve)(judge, requests, replies, setup.timeout_s)
    os._exit(0)  # a verifier's threads and exit handlers must not keep the process alive


def _take_pipes() -> tuple[BinaryIO, BinaryIO]:
    """The pool's pipes, moved away from descriptors 0 and 1, because a verifier may print or read its input.

    What it prints goes to stderr, which the pool keeps until the worker is ready.
    """
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "wb")
    _redirect(os.devnull, 0)
    os.dup2(2, 1)
    return requests, replies


def _redirect(path: str, descriptor: int) -> None:
    opened = os.open(path, os.O_RDWR)
    os.dup2(opened, descriptor)
    os.close(opened)


def _die_with(parent_pid: int) -> None:
    """Ends this process when the pool's process ends. The end of input does that too, unless the verifier hangs."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it ended before the call above
        os._exit(1)


def _limit_memory(memory_limit_gib: float) -> None:
    if sys.platform == "linux":  # macOS refuses limits on the address space
        num_bytes = int(memory_limit_gib * 2**30)
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        if hard != resource.RLIM_INFINITY:
            num_bytes = min(num_bytes, hard)
        resource.setrlimit(resource.RLIMIT_AS, (num_bytes, num_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a verifier that crashes every minute would fill the disk


def _start(setup: wire.Setup, replies: BinaryIO) -> Judge | None:
    """What judges, after its self-test; the pool was told that it is ready. None if the pool was told why not."""
    try:
        judge = Judge(load_reward(setup.reward, setup.source))
    except BaseException as error:  # a recipe may call sys.exit
        _send(replies, wire.text_frame(wire.NOT_LOADED, described(error)))
        return None
    if reason := complaint(judge, setup):
        _send(replies, wire.text_frame(wire.NOT_PASSED, reason))
        return None
    _redirect(os.devnull, 1)
    _redirect(os.devnull, 2)
    _send(replies, wire.frame(wire.READY, json.dumps(judge.signature.as_json()).encode()))
    return judge


def _send(replies: BinaryIO, reply: bytes) -> None:
    replies.write(reply)
    replies.flush()
