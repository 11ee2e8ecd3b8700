"""One call of the pool: its items, those that wait, and the verdicts so far."""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fastgrpo.rewards.pool import wire

Failure = Literal["", "timeout", "died", "raised"]

MAX_CHUNK_CHARS = 1 << 20


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on a response.

    ``failure`` is the reason if there was no judgement; then the response counts as wrong. ``"died"`` means that two
    processes ended while they judged it; one alone may have been killed from outside, for instance for lack of memory.
    ``unformatted``: the response is wrong and has no answer in the form that the verifier demands.
    """

    correct: bool
    failure: Failure = ""
    unformatted: bool = False


VERDICTS = {
    wire.ACCEPTED: Verdict(True),
    wire.REJECTED: Verdict(False),
    wire.UNFORMATTED: Verdict(False, unformatted=True),
}


class Job:
    """The items of one call: those that wait for a worker, and the verdicts on others."""

    def __init__(self, items: Sequence[wire.Item]) -> None:
        self.items = [(str(text), str(answer)) for text, answer in items]  # a worker would import numpy for its str
        self.waiting = deque(range(len(items)))
        self._verdicts: list[Verdict | None] = [None] * len(items)
        self._num_open = len(items)
        self._deaths: Counter[int] = Counter()

    @property
    def done(self) -> bool:
        return self._num_open == 0

    def take_chunk(self, max_items: int) -> list[int]:
        """The numbers of the next items for one worker: at least one, and of a limited length together."""
        chunk = [self.waiting.popleft()]
        num_chars = len(self.items[chunk[0]][0])
        while self.waiting and len(chunk) < max_items and num_chars < MAX_CHUNK_CHARS:
            chunk.append(self.waiting.popleft())
            num_chars += len(self.items[chunk[-1]][0])
        return chunk

    def give_back(self, numbers: Sequence[int]) -> None:
        """Puts items that a worker did not judge before those that wait."""
        self.waiting.extendleft(reversed(numbers))

    def count_death(self, number: int) -> int:
        """Notes that a process died while it judged this item; returns how often that has happened."""
        self._deaths[number] += 1
        return self._deaths[number]

    def decide(self, number: int, verdict: Verdict) -> None:
        """Notes the verdict on an item."""
        assert self._verdicts[number] is None
        self._verdicts[number] = verdict
        self._num_open -= 1

    def verdicts(self) -> list[Verdict]:
        assert self.done
        return [verdict for verdict in self._verdicts if verdict is not None]
