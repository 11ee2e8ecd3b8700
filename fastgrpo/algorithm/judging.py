"""Verdicts on responses, asked for as soon as these are finished: a slow reward works while the sampler does."""

import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from fastgrpo.algorithm.scoring import items_of, judged
from fastgrpo.rewards import Verdict, VerifierPool
from fastgrpo.types import Group, Request, Response, Sample, Sampling


@dataclass(frozen=True)
class _Asked:
    """A sample whose verdict is asked for, and where it will be."""

    text: str
    verdicts: "Future[list[Verdict]]"
    number: int  # of this one among them


@dataclass
class _Group:
    """What of a group is finished, by index: its samples, and those of them whose verdicts are asked for."""

    samples: dict[int, Sample]
    asked: dict[int, _Asked]


class Judging:
    """The verdicts that are on their way. Any thread may ``begin``; the other methods are the trainer's.

    A reward that waits for its group is asked once the group is whole. Nothing here outlives a run: what is on its way
    in a checkpoint is asked for again.
    """

    def __init__(self, tokenizer: Any, pool: VerifierPool) -> None:
        self._tokenizer, self._pool = tokenizer, pool
        self._groups: dict[tuple[int, Sampling], _Group] = {}
        self._lock = threading.Lock()

    def begin(self, request: Request, response: Response) -> None:
        """Asks for the verdict on a finished response. Raises nothing: `judged` does."""
        key = request.prompt.position, request.sampling
        with self._lock:
            group = self._groups.setdefault(key, _Group({}, {}))
            group.samples[request.index] = Sample(request.prompt, response)
            if self._pool.signature.waits_for_group:
                is_whole = len(group.samples) == request.sampling.group_size
                indices = sorted(group.samples) if is_whole else []
            else:
                indices = [request.index]
        if indices:
            self._ask(group, indices)

    def forget(self, positions: Iterable[int], sampling: Sampling) -> None:
        """Takes back what was asked about groups that no step will take; these prompts may be drawn again."""
        for position in positions:
            with self._lock:
                group = self._groups.pop((position, sampling), None)
            for asked in group.asked.values() if group is not None else ():
                asked.verdicts.cancel()

    def close(self) -> None:
        """Takes back all that was asked: the run is over, and nobody will take what was drawn ahead."""
        for position, sampling in list(self._groups):
            self.forget([position], sampling)

    def judged(self, groups: Sequence[Group], sampling: Sampling, right_from: float) -> list[Group]:
        """The groups with their texts and verdicts, in order, once all are there; asks for those that nobody has.

        A number counts as right from ``right_from`` on.
        """
        found = [self._taken(group, sampling) for group in groups]
        return [
            [
                judged(sample, one.text, one.verdicts.result()[one.number], right_from)
                for sample, one in zip(group, asked, strict=True)
            ]
            for group, asked in zip(groups, found, strict=True)
        ]

    @property
    def num_open(self) -> int:
        """Groups that something was begun of, and that were neither judged nor forgotten."""
        return len(self._groups)

    def _taken(self, samples: Group, sampling: Sampling) -> list[_Asked]:
        """What was asked about these samples, which are a whole group."""
        with self._lock:
            group = self._groups.pop((samples[0].prompt.position, sampling), None) or _Group({}, {})
        known = [n for n, s in enumerate(samples) if n in group.asked and group.samples[n].response is s.response]
        missing = [n for n in range(len(samples)) if n not in known]
        if missing and self._pool.signature.waits_for_group:
            missing = list(range(len(samples)))
        if missing:
            group.samples.update(dict(enumerate(samples)))
            self._ask(group, missing)
        return [group.asked[n] for n in range(len(samples))]

    def _ask(self, group: _Group, indices: Sequence[int]) -> None:
        samples = [group.samples[n] for n in indices]
        texts = [""] * len(samples)
        try:
            ids = [s.tokens.response_ids.tolist() for s in samples]
            texts = self._tokenizer.batch_decode(ids, skip_special_tokens=True)
            verdicts = self._pool.submit(items_of(samples, texts, self._pool.signature))
        except Exception as error:  # on a thread that has other things to do
            verdicts = Future()
            verdicts.set_exception(error)
        for number, (n, text) in enumerate(zip(indices, texts, strict=True)):
            group.asked[n] = _Asked(text, verdicts, number)
