"""What every rollout engine does."""

from collections.abc import Container, Iterable, Sequence
from itertools import count
from typing import Protocol

from torch import Tensor

from fastgrpo.types import Group, Prompt, Request, Response, Sample, Sampling


class RolloutEngine(Protocol):
    """Draws responses from the weights that it was last given. Tokens in, tokens out."""

    not_in_place: str
    """Why weights are not written in place but loaded by the engine's own means; empty where they are."""

    def submit(self, requests: Sequence[Request]) -> None:
        """Queues requests; ``step`` draws them."""
        ...

    def step(self) -> list[tuple[int, Response]]:
        """Draws the next token of every response under way. Returns those that ended, each with its request's id."""
        ...

    def cancel(self, ids: Iterable[int]) -> None:
        """Forgets requests, finished or not."""
        ...

    def is_unfinished(self) -> bool: ...

    def write_weights(self, weights: Iterable[tuple[str, Tensor]], policy_version: int) -> None:
        """Overwrites the engine's weights in place, by checkpoint name. What is being drawn goes on under them.

        Raises KeyError for a name it lacks.
        """
        ...

    def checksums(self) -> dict[str, int]:
        """`weight_sync.checksum` of every weight as the engine holds it, by checkpoint name."""
        ...

    def release_memory(self) -> None:
        """Gives up the memory that the settings say. Nothing is being drawn, nor will be until weights were written."""
        ...

    def close(self) -> None:
        """Frees what it holds. Nothing may be called afterwards."""
        ...


def requests_of(prompts: Sequence[Prompt], sampling: Sampling, first_id: int = 0) -> list[Request]:
    """``sampling.group_size`` requests for each prompt, in order, with consecutive ids."""
    ids = count(first_id)
    return [Request(next(ids), p, index, sampling) for p in prompts for index in range(sampling.group_size)]


def generate(
    engine: RolloutEngine,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    num_groups: int | None = None,
    must: Container[int] = (),
) -> list[Group]:
    """The groups of these prompts, in their order: all, or the first ``num_groups`` that are complete.

    Prompts at the positions ``must`` are waited for and are among them; if there are more such prompts than groups, the
    first ones. What was not drawn to its end is forgotten.
    """
    requests = requests_of(prompts, sampling)
    drawn: dict[int, Response] = {}
    missing = [sampling.group_size] * len(prompts)
    wanted = len(prompts) if num_groups is None else num_groups
    awaited = set([n for n, p in enumerate(prompts) if p.position in must][:wanted])
    first = frozenset(awaited)
    num_complete = 0
    engine.submit(requests)
    while engine.is_unfinished() and (num_complete < wanted or awaited):
        for i, response in engine.step():
            drawn[i] = response
            n = i // sampling.group_size
            missing[n] -= 1
            if missing[n] == 0:
                num_complete += 1
                awaited.discard(n)
    engine.cancel([r.id for r in requests if r.id not in drawn])
    complete = sorted((n for n, left in enumerate(missing) if left == 0), key=lambda n: n not in first)
    size = sampling.group_size
    return [[Sample(prompts[n], drawn[n * size + k]) for k in range(size)] for n in sorted(complete[:wanted])]
