"""One call of the pool: its items, which of them wait, and the verdicts so far."""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fastgrpo.rewards.pool import wire

Failure = Literal["", "timeout", "died", "raised"]

MAX_CHUNK_CHARS = 1 << 20


@dataclass(frozen=True, slots=True)
class Verdict:
    """``failure`` says why there was no judgement, in which case the response counts as wrong.

    ``unformatted``: wrong, and without an answer in the form that the verifier demands.
    ``"died"``: two processes ended with this response in hand. One may be killed by anybody, for want of memory say.
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
    """The items of one call: which wait for a worker, and what was found about the others."""

    def __init__(self, items: Sequence[wire.Item]) -> None:
        self.items = [(str(text), str(answer)) for text, answer in items]  # numpy's str would cost an import over there
        self.waiting = deque(range(len(items)))
        self._verdicts: list[Verdict | None] = [None] * len(items)
        self._num_open = len(items)
        self._deaths: Counter[int] = Counter()

    @property
    def done(self) -> bool:
        return self._num_open == 0

    def take_chunk(self, max_items: int) -> list[int]:
        """Numbers of the next items for one worker, at least one, of a bounded length together."""
        chunk = [self.waiting.popleft()]
        num_chars = len(self.items[chunk[0]][0])
        while self.waiting and len(chunk) < max_items and num_chars < MAX_CHUNK_CHARS:
            chunk.append(self.waiting.popleft())
            num_chars += len(self.items[chunk[-1]][0])
        return chunk

    def give_back(self, numbers: Sequence[int]) -> None:
        self.waiting.extendleft(reversed(numbers))

    def count_death(self, number: int) -> int:
        """Notes that a process died with this item in hand; returns how many have."""
        self._deaths[number] += 1
        return self._deaths[number]

    def decide(self, number: int, verdict: Verdict) -> None:
        assert self._verdicts[number] is None
        self._verdicts[number] = verdict
        self._num_open -= 1

    def verdicts(self) -> list[Verdict]:
        assert self.done
        return [verdict for verdict in self._verdicts if verdict is not None]
