"""The pool of verifier processes, each of which can be killed."""

import math
import os
import select
import signal
import threading
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Self

from fastgrpo.rewards.known_answers import SELF_TEST
from fastgrpo.rewards.pool import wire
from fastgrpo.rewards.pool.handle import WorkerHandle
from fastgrpo.rewards.pool.job import VERDICTS, Job, Verdict

MAX_CHUNK_ITEMS = 128
MAX_FAILED_STARTS = 3
MAX_DEATHS = 2
BATCHING_S = 0.0002


class VerifierPool:
    """Judges responses in ``workers`` processes, each of which can be killed without loss.

    Args:
        verifier: ``"package.module:function"`` or ``"/path/to/recipe.py:function"``, a function
            (response text, answer) -> bool or ``"unformatted"``. A file is read once, here.
        workers: number of processes. Each is a fresh interpreter, not a fork, and is replaced when it hangs or dies.
        timeout_s: wall-clock seconds that one item may take.
        memory_limit_gib: address space of one process, shared libraries included (Linux only).
        self_test: (response text, answer, expected verdict) cases that every process must judge rightly at its start.
        start_timeout_s: seconds in which a process must load the verifier and pass the self-test.

    Raises:
        ValueError: an argument is out of range, or the verifier cannot be loaded.
        RuntimeError: the verifier failed the self-test, or a process did not start.

    What a verifier prints is dropped. ``last_error`` describes the latest failed item: a traceback, or how the process
    ended. Calls from several threads take turns.
    """

    def __init__(
        self,
        verifier: str,
        workers: int,
        timeout_s: float,
        memory_limit_gib: float,
        self_test: Sequence[wire.KnownAnswer] = SELF_TEST,
        start_timeout_s: float = 60.0,
    ) -> None:
        _check_positive(workers=workers, timeout_s=timeout_s, memory_limit_gib=memory_limit_gib)
        verifier, source = _locate(verifier)
        self._setup = wire.Setup(verifier, source, tuple(self_test), os.getpid(), timeout_s, memory_limit_gib)
        self._num_workers = workers
        self._start_timeout_s = start_timeout_s
        self._failed_starts = 0
        self._last_failed_start = -math.inf
        self._workers: list[WorkerHandle] = []
        self._lock = threading.RLock()  # a signal handler may close the pool during a call
        # Linux ends a worker when the thread that started it ends. So one thread starts all of them, and lives as long
        # as the pool.
        self._spawner = ThreadPoolExecutor(1, "verifier-spawner")
        self._scorer = ThreadPoolExecutor(1, "verifier-scorer")  # its thread starts with the first submit
        self._finalize = weakref.finalize(self, _shut_down, self._workers, self._spawner, os.getpid())
        self.last_error = ""
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends every process, after the current job; returns when they are gone. May be called again."""
        self._scorer.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._finalize()

    def score(self, items: Sequence[wire.Item]) -> list[Verdict]:
        """The verdicts on (response text, answer) pairs, in order.

        An item whose process dies is judged once more by another one, so a process killed from outside changes no
        verdict. Takes at most about ``len(items) * timeout_s / workers``, twice that for items that kill their
        processes, and the restart of a process for each failure. Raises RuntimeError if a process could not be
        replaced.
        """
        _check_texts(items)
        with self._lock:
            self._check_open()
            job = Job(items)
            try:
                self._run(job)
            except BaseException:
                # A worker in the middle of this job would answer the next job with this one's verdicts.
                _kill_all(self._workers)
                raise
            return job.verdicts()

    def submit(self, items: Sequence[wire.Item]) -> "Future[list[Verdict]]":
        """``score`` in a thread of the pool: the caller goes on, and gets the verdicts or the error from the future.

        Jobs run one after the other.
        """
        self._check_open()
        _check_texts(items)
        return self._scorer.submit(self.score, items)

    def _check_open(self) -> None:
        if not self._finalize.alive or os.getpid() != self._setup.parent_pid:
            raise RuntimeError("this VerifierPool is closed or belongs to the parent process; make another one")

    def _start(self) -> None:
        self._fill()
        while any(worker.starting for worker in self._workers):
            self._wait()
            self._advance(Job([]), max_failed_starts=1)

    def _run(self, job: Job) -> None:
        self._advance(job)  # some may have died since the last call
        while not job.done:
            self._fill()
            self._assign(job)
            self._wait()
            self._advance(job)

    def _fill(self) -> None:
        """Starts the processes that are missing."""
        missing = self._num_workers - len(self._workers)
        starts = [self._spawner.submit(self._start_worker) for _ in range(missing)]
        for future in wait(starts).done:
            future.result()

    def _start_worker(self) -> None:
        self._workers.append(WorkerHandle(self._setup, self._start_timeout_s))

    def _assign(self, job: Job) -> None:
        """Gives each process its next items before it runs out; fewer towards the end, so that no process is idle."""
        for worker in self._workers:
            num_items = min(MAX_CHUNK_ITEMS, math.ceil(len(job.waiting) / (2 * self._num_workers - 1)))
            if job.waiting and worker.can_take and 2 * len(worker.pending) <= num_items:
                numbers = job.take_chunk(num_items)
                worker.assign(numbers, [job.items[number] for number in numbers])

    def _wait(self) -> None:
        """Waits until a process has sent something, can take more, or is late."""
        poll = select.poll()
        for worker in self._workers:
            poll.register(worker.reply_fd, select.POLLIN)
            if worker.wants_to_write:
                poll.register(worker.request_fd, select.POLLOUT)
        now = time.monotonic()
        left_s = min((worker.deadline for worker in self._workers), default=now) - now
        poll.poll(max(0, math.ceil(min(left_s, 3600.0) * 1000)))
        time.sleep(BATCHING_S)  # quick verdicts come one by one; reading several together is cheaper

    def _advance(self, job: Job, max_failed_starts: int = MAX_FAILED_STARTS) -> None:
        """Handles the messages of the processes, and ends those that are late or gone."""
        now = time.monotonic()  # before reading: a process that answered while this one was stopped is not late
        for worker in list(self._workers):
            for code, body in worker.exchange():
                self._handle(job, worker, code, body)
            if worker.gone or worker.deadline < now:
                self._remove(job, worker, max_failed_starts)

    def _handle(self, job: Job, worker: WorkerHandle, code: bytes, body: bytes) -> None:
        if worker.starting:
            self._handle_start(worker, code, body)
        elif code in VERDICTS and worker.pending:
            job.decide(worker.next_judged(), VERDICTS[code])
        elif code in (wire.RAISED, wire.RETIRED) and worker.pending:
            self.last_error = body.decode("utf-8", "replace")
            job.decide(worker.next_judged(), Verdict(False, "raised"))
            if code == wire.RETIRED:
                job.give_back(worker.give_up_pending())
        else:
            worker.gone = True  # a message that a worker never sends: the verifier has written into the pipe

    def _handle_start(self, worker: WorkerHandle, code: bytes, body: bytes) -> None:
        """Raises if the worker cannot use the verifier: another process could not either."""
        reason = body.decode("utf-8", "replace")
        if code == wire.NOT_LOADED:
            raise ValueError(f"cannot load the verifier {self._setup.verifier!r}: {reason}{_memory_hint(reason)}")
        if code == wire.NOT_PASSED:
            raise RuntimeError(
                f"the verifier {self._setup.verifier!r} failed its self-test: {reason}. "
                "Mend it, or give a self_test that fits what it judges"
            )
        worker.mark_started()
        self._failed_starts = 0

    def _remove(self, job: Job, worker: WorkerHandle, max_failed_starts: int) -> None:
        """Ends a process, and gives back its items.

        The item that it was judging counts as wrong if it took too long or has killed `MAX_DEATHS` processes.
        """
        self._workers.remove(worker)
        late = not worker.gone
        status = worker.kill()
        if worker.starting:
            self._count_failed_start(worker, late, status, max_failed_starts)
        elif worker.pending:
            late = late or status == -signal.SIGXCPU
            self.last_error = f"no verdict in {self._setup.timeout_s} s" if late else f"exit status {status}"
            if late or job.count_death(worker.pending[0]) >= MAX_DEATHS:
                job.decide(worker.pending.popleft(), Verdict(False, "timeout" if late else "died"))
            job.give_back(worker.pending)

    def _count_failed_start(self, worker: WorkerHandle, late: bool, status: int | None, max_failed_starts: int) -> None:
        started = worker.deadline - self._start_timeout_s
        if started > self._last_failed_start:  # if all processes are killed while they start, that counts once
            self._failed_starts += 1
            self._last_failed_start = time.monotonic()
        if self._failed_starts >= max_failed_starts:
            how = f"was not ready after {self._start_timeout_s} s" if late else f"ended with exit status {status}"
            raise RuntimeError(
                f"a process of the verifier {self._setup.verifier!r} {how} before its first item, "
                f"{self._failed_starts} time(s) in a row. It printed: {worker.printed or 'nothing'}"
            )


def _kill_all(workers: list[WorkerHandle]) -> None:
    while workers:
        workers.pop().kill()


def _shut_down(workers: list[WorkerHandle], spawner: ThreadPoolExecutor, owner_pid: int) -> None:
    if os.getpid() == owner_pid:  # in a fork the processes are those of the parent
        _kill_all(workers)
        spawner.shutdown(wait=False)


def _locate(verifier: str) -> tuple[str, bytes | None]:
    """The name with an absolute path, and the file's content if it names a file."""
    place, _, function = verifier.rpartition(":")
    if not place or not function.isidentifier():
        raise ValueError(f"a verifier is 'package.module:function' or '/path/to/recipe.py:function', got {verifier!r}")
    if not place.endswith(".py"):
        return verifier, None
    path = Path(place).expanduser().absolute()
    if not path.is_file():
        raise ValueError(f"no file {path}, named by the verifier {verifier!r}")
    return f"{path}:{function}", path.read_bytes()


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be more than 0 and finite, got {value}")


def _check_texts(items: Sequence[wire.Item]) -> None:
    for number, (text, answer) in enumerate(items):
        if not (isinstance(text, str) and isinstance(answer, str)):
            kinds = f"({type(text).__name__}, {type(answer).__name__})"
            raise ValueError(f"item {number} must be (response text, answer), both str, got {kinds}")


def _memory_hint(reason: str) -> str:
    memory = "MemoryError" in reason or "failed to map segment" in reason or "Cannot allocate memory" in reason
    return "\nIts imports may need more address space: raise memory_limit_gib." if memory else ""
