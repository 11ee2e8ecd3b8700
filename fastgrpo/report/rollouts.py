"""The rollouts that the page shows: a long run has more text than a page can hold."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

MAX_EMBEDDED_BYTES = 3_000_000
_FEWEST_STEPS = 8  # so many steps are kept; if they are still too large, some of their rollouts are left out
_FIELDS = ("step", "prompt", "response", "answer", "reward", "advantage", "num_response_tokens", "finish_reason")

Record = dict[str, Any]
Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Rollouts:
    """The rollouts that the page shows, and how many the file has."""

    shown: list[Record]  # by step, ascending
    num_kept: int
    num_steps_kept: int

    @property
    def num_steps_shown(self) -> int:
        return len({rollout["step"] for rollout in self.shown})


def embed(value: Any) -> str:
    """JSON for the inside of a script element: plain ASCII, in which no markup can end the element."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def thin(read: Callable[[], Iterable[Record]], budget: int = MAX_EMBEDDED_BYTES) -> Rollouts:
    """The rollouts of evenly spread steps, the first and the last among them, in at most `budget` bytes.

    `read` gives the file's records, in the same order at each call. It is called twice, because the file may not fit in
    memory.
    """
    sizes: dict[int, list[int]] = {}  # step -> bytes of each of its rollouts
    for record in read():
        sizes.setdefault(record["step"], []).append(len(embed(_slim(record))) + 1)
    chosen = _choose(sizes, budget)
    return Rollouts(
        shown=sorted(_pick(read(), chosen), key=lambda rollout: rollout["step"]),
        num_kept=sum(map(len, sizes.values())),
        num_steps_kept=len(sizes),
    )


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """`count` of the items, evenly spread, the first and the last among them."""
    if count >= len(items):
        return list(items)
    if count == 1:
        return [items[-1]]
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def _choose(sizes: dict[int, list[int]], budget: int) -> dict[int, set[int]]:
    """Step -> the indices of its rollouts to show."""
    steps = sorted(sizes)
    while (size := sum(sum(sizes[step]) for step in steps)) > budget and len(steps) > _FEWEST_STEPS:
        fewer = min(len(steps) - 1, len(steps) * budget // size)
        steps = spread(sorted(sizes), max(_FEWEST_STEPS, fewer))
    if size <= budget:
        return {step: set(range(len(sizes[step]))) for step in steps}
    return {step: _within(sizes[step], budget // len(steps)) for step in steps}


def _within(sizes: list[int], share: int) -> set[int]:
    """The indices of evenly spread rollouts of a step, as many as fit into `share` bytes."""
    indices = list(range(len(sizes)))
    while indices and sum(sizes[index] for index in indices) > share:
        indices = spread(range(len(sizes)), len(indices) - 1) if len(indices) > 1 else []
    return set(indices)


def _pick(records: Iterable[Record], chosen: dict[int, set[int]]) -> Iterable[Record]:
    seen: dict[int, int] = {}
    for record in records:
        index = seen[record["step"]] = seen.get(record["step"], -1) + 1
        if index in chosen.get(record["step"], ()):
            yield _slim(record)


def _slim(record: Record) -> Record:
    return {name: record.get(name) for name in _FIELDS}
