"""Verifiers in processes that can be killed."""

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
        workers: processes. Each is a fresh interpreter, not a fork; it is replaced when it hangs or dies.
        timeout_s: wall-clock seconds that one item may take.
        memory_limit_gib: address space of one process, shared libraries included (Linux only).
        self_test: (response text, answer, expected verdict) that every process must judge rightly before it starts.
        start_timeout_s: for a process to load the verifier and to pass the self-test.

    Raises:
        ValueError: the arguments make no sense, or the verifier cannot be loaded.
        RuntimeError: it failed the self-test, or a process did not start.

    What a verifier prints is dropped. ``last_error`` is what the latest failed item left behind: a traceback, or how
    the process ended. Calls from several threads take turns.
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
        self._lock = threading.RLock()  # a signal handler may close the pool in the middle of a call
        # Linux ends a worker when the thread that started it ends, so one thread that lives as long as the pool
        # starts them all.
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
        """Ends every process; returns when they are gone, and the job in hand is done. May be called again."""
        self._scorer.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._finalize()

    def score(self, items: Sequence[wire.Item]) -> list[Verdict]:
        """Verdicts on (response text, answer) pairs, in order.

        An item whose process dies is judged once more by another one: what is killed from outside changes no verdict.
        Takes at most about ``len(items) * timeout_s / workers``, twice that for items that kill their processes, and
        the restart of a process for each failure.
        RuntimeError if a process could not be replaced.
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
        """As ``score``, in a thread of the pool's: the caller goes on, and gets verdicts or error from the future.

        The thread mostly waits for the processes. Jobs run one after the other.
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
            self._deal(job)
            self._wait()
            self._advance(job)

    def _fill(self) -> None:
        """Starts the processes that are missing."""
        missing = self._num_workers - len(self._workers)
        hired = [self._spawner.submit(self._hire) for _ in range(missing)]
        for future in wait(hired).done:
            future.result()

    def _hire(self) -> None:
        self._workers.append(WorkerHandle(self._setup, self._start_timeout_s))

    def _deal(self, job: Job) -> None:
        """Gives each process its next items before it runs out, and ever fewer towards the end, so that none waits."""
        for worker in self._workers:
            num_items = min(MAX_CHUNK_ITEMS, math.ceil(len(job.waiting) / (2 * self._num_workers - 1)))
            if job.waiting and worker.can_take and 2 * len(worker.pending) <= num_items:
                numbers = job.take_chunk(num_items)
                worker.assign(numbers, [job.items[number] for number in numbers])

    def _wait(self) -> None:
        """Until a process has something to say, or can take more, or is late."""
        poll = select.poll()
        for worker in self._workers:
            poll.register(worker.reply_fd, select.POLLIN)
            if worker.wants_to_write:
                poll.register(worker.request_fd, select.POLLOUT)
        now = time.monotonic()
        left_s = min((worker.deadline for worker in self._workers), default=now) - now
        poll.poll(max(0, math.ceil(min(left_s, 3600.0) * 1000)))
        time.sleep(BATCHING_S)  # quick verdicts come one by one; taken together they cost this process less

    def _advance(self, job: Job, max_failed_starts: int = MAX_FAILED_STARTS) -> None:
        """Takes in what the processes said, and ends those that are late or gone."""
        now = time.monotonic()  # before reading: who answered while this process slept is not late
        for worker in list(self._workers):
            for code, body in worker.pump():
                self._hear(job, worker, code, body)
            if worker.gone or worker.deadline < now:
                self._lose(job, worker, max_failed_starts)

    def _hear(self, job: Job, worker: WorkerHandle, code: bytes, body: bytes) -> None:
        if worker.starting:
            self._hear_start(worker, code, body)
        elif code in VERDICTS and worker.pending:
            job.decide(worker.judged(), VERDICTS[code])
        elif code in (wire.RAISED, wire.RETIRED) and worker.pending:
            self.last_error = body.decode("utf-8", "replace")
            job.decide(worker.judged(), Verdict(False, "raised"))
            if code == wire.RETIRED:
                job.give_back(worker.surrender())
        else:
            worker.gone = True  # not in its right mind

    def _hear_start(self, worker: WorkerHandle, code: bytes, body: bytes) -> None:
        """Raises if the worker says that this verifier will not do: another process would say the same."""
        reason = body.decode("utf-8", "replace")
        if code == wire.NOT_LOADED:
            raise ValueError(f"cannot load the verifier {self._setup.verifier!r}: {reason}{_memory_hint(reason)}")
        if code == wire.NOT_PASSED:
            raise RuntimeError(
                f"the verifier {self._setup.verifier!r} failed its self-test: {reason}. "
                "Mend it, or give a self_test that fits what it judges"
            )
        worker.started()
        self._failed_starts = 0

    def _lose(self, job: Job, worker: WorkerHandle, max_failed_starts: int) -> None:
        """Ends a process. The item in its hand is wrong if it took too long or killed as many as it may, and else goes
        back with the others."""
        self._workers.remove(worker)
        late = not worker.gone
        status = worker.kill()
        if worker.starting:
            self._lose_starting(worker, late, status, max_failed_starts)
        elif worker.pending:
            late = late or status == -signal.SIGXCPU
            self.last_error = f"no verdict in {self._setup.timeout_s} s" if late else f"exit status {status}"
            if late or job.count_death(worker.pending[0]) >= MAX_DEATHS:
                job.decide(worker.pending.popleft(), Verdict(False, "timeout" if late else "died"))
            job.give_back(worker.pending)

    def _lose_starting(self, worker: WorkerHandle, late: bool, status: int | None, max_failed_starts: int) -> None:
        hired = worker.deadline - self._start_timeout_s
        if hired > self._last_failed_start:  # a pool that is killed while it starts has failed once
            self._failed_starts += 1
            self._last_failed_start = time.monotonic()
        if self._failed_starts >= max_failed_starts:
            how = f"was not ready after {self._start_timeout_s} s" if late else f"ended with exit status {status}"
            raise RuntimeError(
                f"a process of the verifier {self._setup.verifier!r} {how} before its first item, "
                f"{self._failed_starts} time(s) in a row. It printed: {worker.last_words or 'nothing'}"
            )


def _kill_all(workers: list[WorkerHandle]) -> None:
    while workers:
        workers.pop().kill()


def _shut_down(workers: list[WorkerHandle], spawner: ThreadPoolExecutor, owner_pid: int) -> None:
    if os.getpid() == owner_pid:  # a fork of the owner has the handles, not the processes
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
