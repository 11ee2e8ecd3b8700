"""The thread of a pool that feeds its workers. All that is known of workers and calls is known to it alone."""

import contextlib
import json
import math
import os
import select
import signal
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future

from fastgrpo.rewards.judgement import Failure, RewardError, Verdict, verdict_of
from fastgrpo.rewards.pool import wire
from fastgrpo.rewards.pool.calls import Job, Queue, QueuedCall
from fastgrpo.rewards.pool.handle import WorkerHandle
from fastgrpo.rewards.signature import Signature

MAX_CHUNK_CALLS = 128
MAX_FAILED_STARTS = 3
MAX_DEATHS = 2
BATCHING_S = 0.0002

VERDICTS = {wire.ACCEPTED: [Verdict(True)], wire.REJECTED: [Verdict(False)]}
FAILURES: dict[bytes, Failure] = {wire.RAISED: "raised", wire.RETIRED: "raised", wire.TIMED_OUT: "timeout"}


class Feeder:
    """Workers and the calls that wait for them, in order of arrival; any thread may add some.

    ``signature`` is how the reward is called, once ``start`` has returned. Linux ends a worker when the thread that
    started it ends: so this thread starts all of them, and lives as long as the pool.
    """

    def __init__(self, setup: wire.Setup, num_workers: int, start_timeout_s: float) -> None:
        self.signature = Signature()
        self.last_error = ""
        self._setup = setup
        self._num_workers = num_workers
        self._start_timeout_s = start_timeout_s
        self._failed_starts = 0
        self._last_failed_start = -math.inf
        self._max_failed_starts = 1  # until the first workers are ready: a reward that does not load never will
        self._workers: list[WorkerHandle] = []
        self._arrived: deque[tuple[Job, Sequence[wire.Call]]] = deque()
        # No lock: a signal handler may end the pool wherever this process is.
        self._ended = False
        self._is_gone = False
        self._finish_begun = False
        self._jobs: set[Job] = set()
        self._queue = Queue()
        read, write = os.pipe()
        os.set_blocking(read, False)
        os.set_blocking(write, False)
        self._wake_read, self._wake_write = open(read, "rb", buffering=0), open(write, "wb", buffering=0)
        self._wake_lock = threading.RLock()  # a finalizer may call in the midst of a call
        self._started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="reward-pool", daemon=True)

    def start(self) -> None:
        """Returns when every worker is ready. Raises what `VerifierPool` says."""
        self._thread.start()
        self._started.result()

    def add(self, calls: Sequence[wire.Call]) -> "Future[list[Verdict]]":
        """The future verdicts of these calls; cancelled if the feeder has ended."""
        job = Job(len(calls))
        if not calls:
            job.future.set_result([])
            return job.future
        self._arrived.append((job, calls))
        self._wake()
        if self._is_gone:  # and may not have seen it
            job.future.cancel()
        return job.future

    def end(self, *, finish_begun: bool) -> None:
        """Ends thread and workers: at once, or after the jobs of which a worker has got calls; others are cancelled."""
        self._finish_begun = finish_begun
        self._ended = True
        self._wake()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _wake(self) -> None:
        with self._wake_lock:
            if not self._wake_write.closed:
                self._wake_write.write(b"w")  # if it is full, that wakes as well

    def _run(self) -> None:
        try:
            self._start_workers()
            while not self._is_over():
                self._do_a_round()
        except BaseException as error:
            if self._started.done():
                for job in self._jobs:
                    job.fail(error)
                raise
            self._started.set_exception(error)
        finally:
            self._ended = self._is_gone = True
            _kill_all(self._workers)
            self._take_arrivals()
            for job in self._jobs:
                job.future.cancel()
            with self._wake_lock:  # whoever writes meanwhile would write into the next file that gets its number
                self._wake_read.close()
                self._wake_write.close()

    def _start_workers(self) -> None:
        self._fill()
        while any(worker.starting for worker in self._workers) and not self._ended:
            self._wait()
            self._advance()
        self._max_failed_starts = MAX_FAILED_STARTS
        self._started.set_result(None)

    def _is_over(self) -> bool:
        if not self._ended:
            return False
        for job in self._jobs:
            if not (job.has_begun and self._finish_begun):
                job.future.cancel()
        return all(job.is_over for job in self._jobs)

    def _do_a_round(self) -> None:
        try:
            self._take_arrivals()
            if len(self._queue):
                self._fill()
                self._assign()
            self._wait()
            self._advance()
            self._jobs = {job for job in self._jobs if not job.is_over}
        except (RuntimeError, ValueError, OSError) as error:  # a worker cannot be replaced
            _kill_all(self._workers)
            for job in self._jobs:
                job.fail(RewardError(str(error)))

    def _take_arrivals(self) -> None:
        while self._arrived:
            job, calls = self._arrived.popleft()
            self._jobs.add(job)
            self._queue.add(job, calls)

    def _fill(self) -> None:
        """Starts the workers that are missing."""
        while len(self._workers) < self._num_workers:
            self._workers.append(WorkerHandle(self._setup, self._start_timeout_s))

    def _assign(self) -> None:
        """Gives each worker its next calls before it runs out; fewer towards the end, so that no worker is idle. Async
        ones share all that they have room for."""
        if not self.signature.is_async:
            for worker in self._workers:
                self._give(worker, math.ceil(len(self._queue) / (2 * self._num_workers - 1)))
            return
        took_any = True
        while took_any:
            shares = range(len(self._workers), 0, -1)
            took = [self._give(w, math.ceil(len(self._queue) / n)) for w, n in zip(self._workers, shares, strict=True)]
            took_any = any(took)

    def _give(self, worker: WorkerHandle, share: int) -> bool:
        """Sends a worker at most so many calls; returns whether it took any."""
        room = worker.room(min(MAX_CHUNK_CALLS, share))
        chunk = self._queue.take_chunk(room, not worker.pending)
        for call in chunk:
            call.job.has_begun = True
        if chunk:
            worker.assign(chunk)
        return bool(chunk)

    def _wait(self) -> None:
        """Waits until a worker has sent something, can take more, or is late, or until there is more to judge."""
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        for worker in self._workers:
            poll.register(worker.reply_fd, select.POLLIN)
            if worker.wants_to_write:
                poll.register(worker.request_fd, select.POLLOUT)
        now = time.monotonic()
        left_s = min((worker.deadline for worker in self._workers), default=math.inf) - now
        poll.poll(max(0, math.ceil(min(left_s, 3600.0) * 1000)))
        time.sleep(BATCHING_S)  # quick verdicts come one by one; reading several together is cheaper
        self._wake_read.read(4096)

    def _advance(self) -> None:
        """Handles the messages of the workers, and ends those that are late or gone."""
        now = time.monotonic()  # before reading: a worker that answered while this process was stopped is not late
        for worker in list(self._workers):
            num_pending = len(worker.pending)
            for code, number, body in worker.exchange():
                self._handle(worker, code, number, body)
            worker.note_judged(num_pending - len(worker.pending))
            if worker.gone or worker.deadline < now:
                self._remove(worker)

    def _handle(self, worker: WorkerHandle, code: bytes, number: int, body: bytes) -> None:
        if worker.starting:
            self._handle_start(worker, code, body)
        elif not worker.awaits(number) or (verdicts := self._verdicts(code, body)) is None:
            worker.gone = True  # a message that a worker never sends: the reward has written into the pipe
        else:
            call = worker.pending.pop(number)
            if code == wire.BROKEN:
                call.job.fail(RewardError(body.decode("utf-8", "replace")))
            else:
                call.decide(verdicts)
            if code == wire.RETIRED:
                in_hand, others = worker.give_up_pending()
                self._queue.give_back([*in_hand, *others])

    def _verdicts(self, code: bytes, body: bytes) -> list[Verdict] | None:
        """What a message says of a call: a verdict for each item, or one for all; None if no worker sends it."""
        if code in VERDICTS:
            return VERDICTS[code]
        if code == wire.JUDGED:
            with contextlib.suppress(ValueError, TypeError, RecursionError):
                found = json.loads(body)
                return [verdict_of(each) for each in (found if self.signature.whole_groups else [found])]
            return None
        if code in FAILURES:
            self.last_error = body.decode("utf-8", "replace")
            return [Verdict(False, FAILURES[code])]
        return [] if code == wire.BROKEN else None

    def _handle_start(self, worker: WorkerHandle, code: bytes, body: bytes) -> None:
        """Raises if the worker cannot use the reward: another one could not either."""
        reason = body.decode("utf-8", "replace")
        if code == wire.NOT_LOADED:
            raise ValueError(f"cannot load the reward {self._setup.reward!r}: {reason}{_memory_hint(reason)}")
        if code == wire.NOT_PASSED:
            raise RuntimeError(f"the reward {self._setup.reward!r} {reason}")
        self.signature = Signature.from_json(json.loads(reason))
        worker.mark_started(self.signature.is_async)
        self._failed_starts = 0

    def _remove(self, worker: WorkerHandle) -> None:
        """Ends a worker, and gives back its calls.

        A call that it had in hand counts as wrong if it took too long or has killed `MAX_DEATHS` workers. Where there
        are several of them, each is judged once more and alone, to see which it was.
        """
        self._workers.remove(worker)
        late = not worker.gone
        status = worker.kill()
        if worker.starting:
            self._count_failed_start(worker, late, status)
        elif worker.pending:
            late = late or status == -signal.SIGXCPU
            self.last_error = f"no verdict in {self._setup.timeout_s} s" if late else f"exit status {status}"
            in_hand, others = worker.give_up_pending()
            self._queue.give_back([*(call for call in in_hand if not self._is_lost(call, late, len(in_hand))), *others])

    def _is_lost(self, call: QueuedCall, late: bool, num_in_hand: int) -> bool:
        """Whether a call that a removed worker had in hand gets no other one."""
        call.deaths += not late
        is_lost = num_in_hand == 1 if late else call.deaths >= MAX_DEATHS
        if is_lost:
            call.decide([Verdict(False, "timeout" if late else "died")])
        call.alone = num_in_hand > 1
        return is_lost

    def _count_failed_start(self, worker: WorkerHandle, late: bool, status: int | None) -> None:
        if worker.started_at > self._last_failed_start:  # if all are killed while they start, that counts once
            self._failed_starts += 1
            self._last_failed_start = time.monotonic()
        if self._failed_starts >= self._max_failed_starts:
            how = f"was not ready after {self._start_timeout_s} s" if late else f"ended with exit status {status}"
            raise RuntimeError(
                f"a process of the reward {self._setup.reward!r} {how} before its first item, "
                f"{self._failed_starts} time(s) in a row. It printed: {worker.printed or 'nothing'}"
            )


def _kill_all(workers: list[WorkerHandle]) -> None:
    while workers:
        workers.pop().kill()


def _memory_hint(reason: str) -> str:
    memory = "MemoryError" in reason or "failed to map segment" in reason or "Cannot allocate memory" in reason
    return "\nIts imports may need more address space: raise memory_limit_gib." if memory else ""
