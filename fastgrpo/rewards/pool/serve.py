"""Calls in, messages out, until the pool closes the pipe. Each message is sent at once: the pool must know on which
call the process hangs."""

import asyncio
import math
import pickle
import resource
import threading
import time
from itertools import count
from typing import BinaryIO

from fastgrpo.rewards.pool import wire
from fastgrpo.rewards.pool.judge import Judge, Message

CPU_LIMIT_AGE_S = 0.1  # the CPU limit is renewed after this time; a system call for each item would cost too much


class CpuLimit:
    """Makes the kernel end the process if the pool does not. The limit is wide: the times of threads add up."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._renewed_at = -math.inf

    def renew(self) -> None:
        """Begins anew, unless it has just begun."""
        if time.monotonic() - self._renewed_at > CPU_LIMIT_AGE_S:
            _, hard = resource.getrlimit(resource.RLIMIT_CPU)
            soft = int(time.process_time() + 4 * self._timeout_s) + 10
            resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
            self._renewed_at = time.monotonic()


def serve(judge: Judge, requests: BinaryIO, replies: BinaryIO, timeout_s: float) -> None:
    """Judges one call after the other."""
    limit, numbers = CpuLimit(timeout_s), count()
    while (message := wire.read_frame(requests)) is not None:
        for call in pickle.loads(message[1]):
            limit.renew()
            code = _reply(replies, judge.judge(call), next(numbers))
            if code == wire.RETIRED:
                return


def serve_async(judge: Judge, requests: BinaryIO, replies: BinaryIO, timeout_s: float) -> None:
    """Judges all calls that it has at once, on one event loop."""
    assert judge.runner is not None
    judge.runner.run(_serve_on_loop(judge, requests, replies, timeout_s))


async def _serve_on_loop(judge: Judge, requests: BinaryIO, replies: BinaryIO, timeout_s: float) -> None:
    loop, done, limit, numbers = asyncio.get_running_loop(), asyncio.Event(), CpuLimit(timeout_s), count()
    tasks: set[asyncio.Task[None]] = set()  # the loop holds its tasks by weak references alone

    async def judge_one(call: wire.Call, number: int) -> None:
        limit.renew()
        code = _reply(replies, await judge.judge_async(call, timeout_s), number)
        if code == wire.RETIRED:
            done.set()

    def begin(calls: list[wire.Call]) -> None:
        for call in calls:
            tasks.add(task := loop.create_task(judge_one(call, next(numbers))))
            task.add_done_callback(tasks.discard)

    def read() -> None:
        while (message := wire.read_frame(requests)) is not None:
            loop.call_soon_threadsafe(begin, pickle.loads(message[1]))
        loop.call_soon_threadsafe(done.set)

    threading.Thread(target=read, daemon=True).start()
    await done.wait()


def _reply(replies: BinaryIO, message: Message, number: int) -> bytes:
    """Sends a message and returns its code."""
    code, text = message
    body = text.encode() if code == wire.JUDGED else text[-wire.MAX_MESSAGE_CHARS :].encode("utf-8", "backslashreplace")
    replies.write(wire.frame(code, body, number))
    replies.flush()
    return code
