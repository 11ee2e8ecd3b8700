"""What was submitted to the pool: jobs, and the calls of the reward that they are made of."""

import math
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future

from fastgrpo.rewards.judgement import Verdict
from fastgrpo.rewards.pool import wire

MAX_CHUNK_CHARS = 1 << 20


class Job:
    """The calls of one submission, and the verdicts so far; ``future`` gets them all."""

    def __init__(self, num_calls: int) -> None:
        self.future: Future[list[Verdict]] = Future()
        self.has_begun = False
        self._verdicts: list[list[Verdict]] = [[] for _ in range(num_calls)]
        self._num_open = num_calls

    def decide(self, place: int, verdicts: list[Verdict]) -> None:
        """Notes the verdicts of a call; with the last one the future is done."""
        assert not self._verdicts[place]
        self._verdicts[place] = verdicts
        self._num_open -= 1
        if self.is_judged and self.future.set_running_or_notify_cancel():
            self.future.set_result([verdict for of_call in self._verdicts for verdict in of_call])

    def fail(self, error: BaseException) -> None:
        """Ends the job with an error, unless it has ended already."""
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)

    @property
    def is_judged(self) -> bool:
        return self._num_open == 0


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

    @property
    def num_chars(self) -> int:
        return sum(len(item.response) for item in self.items)

    def decide(self, verdicts: Sequence[Verdict]) -> None:
        """Notes the verdicts on its items; one alone is that on all of them."""
        if not self.job.future.done():
            of_all = list(verdicts) if len(verdicts) == len(self.items) else [*verdicts] * len(self.items)
            self.job.decide(self.place, of_all)


class Queue:
    """The calls that wait, in order of arrival."""

    def __init__(self) -> None:
        self._calls: deque[QueuedCall] = deque()

    def __len__(self) -> int:
        return len(self._calls)

    def add(self, job: Job, calls: Sequence[wire.Call]) -> None:
        self._calls.extend(QueuedCall(job, place, items) for place, items in enumerate(calls))

    def give_back(self, calls: Sequence[QueuedCall]) -> None:
        """Puts calls that a worker did not judge before those that wait."""
        self._calls.extendleft(reversed(calls))

    def take_chunk(self, max_calls: int, worker_is_idle: bool) -> list[QueuedCall]:
        """The next calls for one worker, of a limited length together; none if the next one needs an idle worker."""
        chunk: list[QueuedCall] = []
        num_chars = 0
        while self._calls and len(chunk) < max_calls and num_chars < MAX_CHUNK_CHARS:
            call = self._calls[0]
            if call.job.future.done():  # cancelled
                self._calls.popleft()
                continue
            if call.alone and (chunk or not worker_is_idle):
                break
            chunk.append(self._calls.popleft())
            num_chars += call.num_chars
            if call.alone:
                break
        return chunk
