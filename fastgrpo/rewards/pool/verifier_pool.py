"""The pool of processes that judge, each of which can be killed."""

import math
import os
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Self

from fastgrpo.rewards.judgement import KnownAnswer, Verdict
from fastgrpo.rewards.pool import wire
from fastgrpo.rewards.pool.feeder import Feeder
from fastgrpo.rewards.pool.load import locate_reward
from fastgrpo.rewards.pool.wire import Item
from fastgrpo.rewards.signature import Signature

NOTHING: Mapping[str, Any] = {}
MADE_UP = Item(
    "Six times seven is 42, so the answer is \\boxed{42}.\n```python\nprint(6 * 7)\n```",
    "42",
    {
        "prompt": "What is six times seven?",
        "row": {},
        "response_ids": [0, 1, 2],
        "finish_reason": "stop",
        "group": ["Six times seven is 41, so the answer is \\boxed{41}."],
    },
)
"""What a reward is tried on before there is a response. Its program has one that runs programs start its sandbox."""


class VerifierPool:
    """Judges responses in ``workers`` processes, each of which can be killed without loss.

    Args:
        reward: ``"package.module:function"`` or ``"/path/to/recipe.py:function"``, a function (response text, answer)
            -> `Judgement`, which may ask for more by its signature (docs/rewards.md). A file is read once, here.
        workers: number of processes. Each is a fresh interpreter, not a fork, and is replaced when it hangs or dies.
        timeout_s: wall-clock seconds that one call may take.
        memory_limit_gib: address space of one process, shared libraries included (Linux only).
        self_test: (response text, answer, expected judgement) cases that every process must judge rightly at its start;
            None: those that the reward was decorated with (``known_answers``), or else one call on ``example`` must
            return a judgement.
        example: what the reward gets in these tests for what it asks for by name.
        concurrency: calls of an async reward that run at once in a process.
        start_timeout_s: seconds in which a process must load the reward and pass the self-test.

    Raises:
        ValueError: an argument is out of range, or the reward cannot be loaded.
        RuntimeError: the reward failed the self-test, or a process did not start.

    What a reward prints is dropped. ``last_error`` describes the latest failed item: a traceback, its last line first,
    or how the process ended. Any number of threads may call.
    """

    def __init__(
        self,
        reward: str,
        workers: int,
        timeout_s: float,
        memory_limit_gib: float,
        self_test: Sequence[KnownAnswer] | None = None,
        *,
        example: Item = MADE_UP,
        concurrency: int = 32,
        start_timeout_s: float = 60.0,
    ) -> None:
        _check_positive(
            workers=workers, timeout_s=timeout_s, memory_limit_gib=memory_limit_gib, concurrency=concurrency
        )
        reward, source = locate_reward(reward)
        setup = wire.Setup(
            reward,
            source,
            None if self_test is None else tuple(self_test),
            example,
            os.getpid(),
            timeout_s,
            memory_limit_gib,
            concurrency,
        )
        self._feeder = Feeder(setup, workers, start_timeout_s)
        self._finalize = weakref.finalize(self, _end, self._feeder, os.getpid())
        self._owner_pid = os.getpid()
        try:
            self._feeder.start()
        except BaseException:
            self._finalize()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is None:
            self.close()
        else:
            self._finalize()  # nobody waits for verdicts any more

    @property
    def signature(self) -> Signature:
        """How the reward is called, and what it asks for."""
        return self._feeder.signature

    @property
    def last_error(self) -> str:
        return self._feeder.last_error

    def close(self) -> None:
        """Ends every process, after the jobs that have begun; returns when they are gone. May be called again."""
        if os.getpid() == self._owner_pid:
            self._feeder.end(finish_begun=True)
        self._finalize()

    def score(self, items: Sequence[Item | tuple[str, str]]) -> list[Verdict]:
        """The verdicts on these responses, in order: what the future of `submit` gets."""
        future = self.submit(items)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def submit(self, items: Sequence[Item | tuple[str, str]]) -> "Future[list[Verdict]]":
        """The future verdicts on these responses, in order. Returns at once; all that was submitted shares the workers
        in order of arrival.

        Where the reward takes whole groups (``signature.whole_groups``), the items are one group. An item whose process
        dies is judged once more by another one, so a process killed from outside changes no verdict. Takes at most
        about ``len(items) * timeout_s / workers``, twice that for items that kill their processes, and the restart of a
        process for each failure. The future raises RewardError if a process could not be replaced, if the reward raised
        one, and if one that takes groups returned a list of another length.
        """
        if not self._finalize.alive or os.getpid() != self._owner_pid:
            raise RuntimeError("this VerifierPool is closed or belongs to the parent process; make another one")
        checked = _checked(items, self.signature.names)
        if self.signature.whole_groups:
            return self._feeder.add([checked] if checked else [])
        return self._feeder.add([(item,) for item in checked])


def _end(feeder: Feeder, owner_pid: int) -> None:
    if os.getpid() == owner_pid:  # in a fork the processes are those of the parent
        feeder.end(finish_begun=False)


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be more than 0 and finite, got {value}")


def _checked(items: Sequence[Item | tuple[str, str]], names: frozenset[str]) -> wire.Call:
    """What is sent of the items: of what they carry, that which the reward asks for."""
    checked = []
    for number, (text, answer, *rest) in enumerate(items):
        if not (isinstance(text, str) and isinstance(answer, str)):
            kinds = f"({type(text).__name__}, {type(answer).__name__})"
            raise ValueError(f"item {number} must be (response text, answer), both str, got {kinds}")
        if names:
            named: Mapping[str, Any] = rest[0] if rest else {}
            if missing := sorted(names - named.keys()):
                raise ValueError(f"item {number} lacks what the reward asks for: {', '.join(missing)}")
            named = {name: named[name] for name in names}
        else:
            named = NOTHING
        checked.append((str(text), str(answer), named))  # a worker would import numpy for its str
    return checked
