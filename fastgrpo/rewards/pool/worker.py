"""The process that judges, which only ``VerifierPool`` starts.

It may hang, die or be killed at any moment: every verdict is written to the pool at once.
"""

import ctypes
import importlib
import math
import os
import pickle
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import BinaryIO

from fastgrpo.rewards.pool import wire

Verifier = Callable[[str, str], wire.Judgement]

CODES = {True: wire.ACCEPTED, False: wire.REJECTED, "unformatted": wire.UNFORMATTED}

FRAMES = {code: wire.frame(code) for code in CODES.values()}

CPU_LIMIT_AGE_S = 0.1  # the CPU limit is renewed after this time; a system call for each item would cost too much
PR_SET_PDEATHSIG = 1


def main() -> None:
    requests, replies = _take_pipes()
    message = wire.read_frame(requests)
    if message is not None:
        setup: wire.Setup = pickle.loads(message[1])
        _die_with(setup.parent_pid)
        _ignore_requests_to_end()
        _limit_memory(setup.memory_limit_gib)
        verifier = _start(setup, replies)
        if verifier is not None:
            _serve(verifier, requests, replies, setup.timeout_s)
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


def _ignore_requests_to_end() -> None:
    """Handles signals that ask for the end by doing nothing.

    A scheduler that ends a job sends them to all processes, and the trainer may still need verdicts. SIG_IGN is not
    used, because programs that a verifier starts would inherit it.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)


def _limit_memory(memory_limit_gib: float) -> None:
    if sys.platform == "linux":  # macOS refuses limits on the address space
        num_bytes = int(memory_limit_gib * 2**30)
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        if hard != resource.RLIM_INFINITY:
            num_bytes = min(num_bytes, hard)
        resource.setrlimit(resource.RLIMIT_AS, (num_bytes, num_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a verifier that crashes every minute would fill the disk


def _start(setup: wire.Setup, replies: BinaryIO) -> Verifier | None:
    """The verifier after its self-test, and tells the pool that it is ready; None if it tells the pool why not."""
    try:
        verifier = _load(setup)
    except BaseException:  # a recipe may call sys.exit
        _send(replies, wire.text_frame(wire.NOT_LOADED, traceback.format_exc()))
        return None
    complaint = _try_known_answers(verifier, setup.self_test)
    if complaint:
        _send(replies, wire.text_frame(wire.NOT_PASSED, complaint))
        return None
    _redirect(os.devnull, 1)
    _redirect(os.devnull, 2)
    _send(replies, wire.frame(wire.READY))
    return verifier


def _load(setup: wire.Setup) -> Verifier:
    module_name, _, function_name = setup.verifier.rpartition(":")
    if setup.source is None:
        module = importlib.import_module(module_name)
    else:
        module = _run_file(module_name, setup.source)
    function: Verifier | None = getattr(module, function_name, None)
    if not callable(function):
        of_its_own = (
            name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__
        )
        callables = [name for name in of_its_own if callable(getattr(module, name)) and not name.startswith("_")]
        raise ValueError(f"{module_name} has no function {function_name!r}; it has {', '.join(callables) or 'none'}")
    return function


def _run_file(path: str, source: bytes) -> ModuleType:
    """The module of a Python file. The pool has read the file once, so an edit during the run changes no verdict."""
    module = ModuleType("fastgrpo_verifier_file")
    module.__file__ = path
    sys.modules[module.__name__] = module  # dataclasses look there
    exec(compile(source, path, "exec", dont_inherit=True), module.__dict__)
    return module


def _try_known_answers(verifier: Verifier, self_test: tuple[wire.KnownAnswer, ...]) -> str:
    """What went wrong; empty if nothing did. It also loads what the verifier imports late, before its time counts."""
    for text, answer, expected in self_test:
        code, reason = _judge(verifier, text, answer)
        if code != CODES[expected]:
            found = reason or next(str(verdict) for verdict, its_code in CODES.items() if its_code == code)
            return f"needed {expected} for the response {text[-200:]!r} and the answer {answer!r}, got {found}"
    return ""


def _serve(verifier: Verifier, requests: BinaryIO, replies: BinaryIO, timeout_s: float) -> None:
    """Judges until the pool closes the pipe. Sends each verdict at once: the pool must know on which item it hangs."""
    limited_at = -math.inf
    while (message := wire.read_frame(requests)) is not None:
        for text, answer in pickle.loads(message[1]):
            if time.monotonic() - limited_at > CPU_LIMIT_AGE_S:
                _renew_cpu_time(timeout_s)
                limited_at = time.monotonic()
            code, reason = _judge(verifier, text, answer)
            _send(replies, wire.text_frame(code, reason) if reason else FRAMES[code])
            if code == wire.RETIRED:
                return


def _renew_cpu_time(timeout_s: float) -> None:
    """Makes the kernel end the process if the pool does not. The limit is wide, because the times of threads add up."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = int(time.process_time() + 4 * timeout_s) + 10
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _judge(verifier: Verifier, text: str, answer: str) -> tuple[bytes, str]:
    """The verdict as a code of ``wire``, and the reason if there is none."""
    try:
        verdict = verifier(text, answer)
    except MemoryError:
        return wire.RETIRED, "MemoryError: the verifier went over memory_limit_gib"
    except BaseException:  # also SystemExit: only the pool ends this process
        return wire.RAISED, traceback.format_exc(limit=-20)
    if type(verdict).__name__ in ("bool", "bool_"):  # numpy's too
        return CODES[bool(verdict)], ""
    if verdict == "unformatted":
        return wire.UNFORMATTED, ""
    return wire.RAISED, (
        f'TypeError: a verifier must return bool or "unformatted", got {type(verdict).__name__}; '
        "as a bool, a reward of -1.0 is true"
    )


def _send(replies: BinaryIO, reply: bytes) -> None:
    replies.write(reply)
    replies.flush()
