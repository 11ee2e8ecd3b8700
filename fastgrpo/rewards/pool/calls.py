"""What was submitted to the pool: jobs, and the calls of the reward that they are made of."""

import math
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from itertools import chain

from fastgrpo.rewards.judgement import Verdict
from fastgrpo.rewards.pool import wire

MAX_CHUNK_CHARS = 1 << 20


class Job:
    """The calls of one submission, and the verdicts so far; ``future`` gets them all.

    ``is_over``: all are there, or nobody wants them any more.
    """

    def __init__(self, num_calls: int) -> None:
        self.future: Future[list[Verdict]] = Future()
        self.has_begun = False
        self.is_over = False
        self._verdicts: list[Sequence[Verdict]] = [()] * num_calls
        self._num_open = num_calls
        self.future.add_done_callback(self._note_end)

    def decide(self, place: int, verdicts: Sequence[Verdict]) -> None:
        """Notes the verdicts of a call; with the last one the future is done."""
        self._verdicts[place] = verdicts
        self._num_open -= 1
        if self._num_open == 0 and self.future.set_running_or_notify_cancel():
            self.future.set_result(list(chain.from_iterable(self._verdicts)))

    def fail(self, error: BaseException) -> None:
        """Ends the job with an error, unless it is over."""
        if not self.is_over and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)

    def _note_end(self, future: "Future[list[Verdict]]") -> None:
        self.is_over = True


class QueuedCall:
    """A call that waits for a worker or is with one.

    ``due`` (``time.monotonic``) is when a worker must have answered; infinite until its time runs. ``deaths`` counts
    the processes that ended while they had it in hand. ``alone``: it is judged by a worker that has nothing else, so
    that it is known what this one ends of.
    """

    __slots__ = ("alone", "deaths", "due", "items", "job", "place")

    def __init__(self, job: Job, place: int, items: wire.Call) -> None:
        self.job = job
        self.place = place
        self.items = items
        self.due = math.inf
        self.deaths = 0
        self.alone = False

    def decide(self, verdicts: Sequence[Verdict]) -> None:
        """Notes the verdicts on its items; one alone is that on all of them."""
        if not self.job.is_over:
            self.job.decide(self.place, verdicts if len(verdicts) == len(self.items) else [*verdicts] * len(self.items))


class Queue:
    """The calls that wait: those that were given back, then the others in order of arrival."""

    def __init__(self) -> None:
        self._returned: deque[QueuedCall] = deque()
        self._arrived: deque[tuple[Job, Sequence[wire.Call]]] = deque()
        self._next_place = 0  # of the first job's calls
        self._num_arrived = 0

    def __len__(self) -> int:
        return len(self._returned) + self._num_arrived

    def add(self, job: Job, calls: Sequence[wire.Call]) -> None:
        self._arrived.append((job, calls))
        self._num_arrived += len(calls)

    def give_back(self, calls: Sequence[QueuedCall]) -> None:
        """Puts calls that a worker did not judge before those that wait."""
        self._returned.extendleft(reversed(calls))

    def take_chunk(self, max_calls: int, worker_is_idle: bool) -> list[QueuedCall]:
        """The next calls for one worker, of a limited length together; none if the next one needs an idle worker."""
        chunk: list[QueuedCall] = []
        num_chars = 0
        while len(chunk) < max_calls and num_chars < MAX_CHUNK_CHARS:
            if self._returned and self._returned[0].alone and (chunk or not worker_is_idle):
                break
            call = self._returned.popleft() if self._returned else self._next_arrived()
            if call is None:
                break
            if call.job.is_over:  # cancelled
                continue
            chunk.append(call)
            for item in call.items:
                num_chars += len(item[0])
            if call.alone:
                break
        return chunk

    def _next_arrived(self) -> QueuedCall | None:
        while self._arrived:
            job, calls = self._arrived[0]
            place = self._next_place
            if place < len(calls):
                self._next_place += 1
                self._num_arrived -= 1
                return QueuedCall(job, place, calls[place])
            self._arrived.popleft()
            self._next_place = 0
        return None
