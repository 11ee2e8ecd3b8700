"""Several rewards as one."""

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Any

from fastgrpo.rewards.judgement import RewardError, as_json
from fastgrpo.rewards.signature import Signature, signature_of

Reward = Callable[..., Any]
Responses = tuple[Sequence[str], Sequence[str], dict[str, Sequence[Any]]]  # responses, answers, what is asked for


def weighted(**parts: tuple[Reward, float]) -> Reward:
    """One reward of several, by their names and with their weights: ``weighted(correct=(math_verify, 1.0),
    short=(short, 0.2))``.

    The reward is the weighted sum, and each part is recorded by its name, unweighted. Of a verifier, right is 1 and
    wrong or unformatted is 0; the verdict of one that is named ``correct`` says whether the response is right. A part
    that is None is left out of the sum. Each may ask for parameters of its own, be async, or take whole groups; where
    one is async, the others run on its event loop.
    """
    if not parts:
        raise ValueError("weighted needs one reward or more: weighted(correct=(strict_boxed, 1.0))")
    for name, part in parts.items():
        if not (isinstance(part, tuple) and len(part) == 2 and callable(part[0]) and _is_finite(part[1])):
            raise ValueError(f"{name} must be a reward and its weight, (strict_boxed, 1.0), got {part!r}")
    return _Weighted([_Part(name, reward, weight) for name, (reward, weight) in parts.items()])


def _is_finite(weight: Any) -> bool:
    return isinstance(weight, int | float) and math.isfinite(weight)


class _Part:
    def __init__(self, name: str, reward: Reward, weight: float) -> None:
        self.name, self.reward, self.weight = name, reward, weight
        self.signature = signature_of(reward)

    def start(self, given: Responses) -> list[Any]:
        """What the calls for these responses return: one call for all where the reward takes groups."""
        responses, answers, named = given
        mine = {name: named[name] for name in self.signature.names}
        if self.signature.whole_groups:
            return [self.reward(responses, answers, **mine)]
        return [
            self.reward(response, answers[n], **{name: values[n] for name, values in mine.items()})
            for n, response in enumerate(responses)
        ]

    def values(self, found: Sequence[Any], count: int) -> list[Any]:
        """A value for each of ``count`` responses, of what the calls have returned."""
        values = list(found[0]) if self.signature.whole_groups else found
        if len(values) != count:
            raise RewardError(f"{self.name} got {count} responses of a group and returned a list of {len(values)}")
        return [self._value(value) for value in values]

    def _value(self, value: Any) -> Any:
        plain = as_json(value)
        return plain["score"] if isinstance(plain, dict) else False if plain == "unformatted" else plain


class _Weighted:
    def __init__(self, parts: list[_Part]) -> None:
        self.parts = parts
        signatures = [part.signature for part in parts]
        self.called_as = Signature(
            frozenset().union(*(s.names for s in signatures)),
            is_async=any(s.is_async for s in signatures),
            whole_groups=any(s.whole_groups for s in signatures),
        )

    def __call__(self, response: Any, answer: Any, **named: Any) -> Any:
        if self.called_as.whole_groups:
            given: Responses = (response, answer, named)
        else:
            given = ([response], [answer], {name: [value] for name, value in named.items()})
        if self.called_as.is_async:
            return self._awaited(given)
        return self._sums([part.start(given) for part in self.parts], len(given[0]))

    async def _awaited(self, given: Responses) -> Any:
        async def of(part: _Part) -> list[Any]:
            found = part.start(given)
            return list(await asyncio.gather(*found)) if part.signature.is_async else found

        return self._sums(await asyncio.gather(*map(of, self.parts)), len(given[0]))

    def _sums(self, found: Sequence[list[Any]], count: int) -> Any:
        """The named parts of each response, with their weights."""
        columns = [part.values(its, count) for part, its in zip(self.parts, found, strict=True)]
        sums = [
            {part.name: (value, part.weight) for part, value in zip(self.parts, row, strict=True)}
            for row in zip(*columns, strict=True)
        ]
        return sums if self.called_as.whole_groups else sums[0]
