"""From prompts to groups of samples, by one engine in this process."""

from collections.abc import Callable, Container, Sequence
from itertools import count

from fastgrpo.rollout.engine_protocol import RolloutEngine
from fastgrpo.types import Group, Prompt, Request, Response, Sample, Sampling

OnFinished = Callable[[Request, Response], None]
"""What is called with every response as soon as it is finished."""


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
    on_finished: OnFinished | None = None,
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
            if on_finished is not None:
                on_finished(requests[i], response)
            n = i // sampling.group_size
            missing[n] -= 1
            if missing[n] == 0:
                num_complete += 1
                awaited.discard(n)
    engine.cancel([r.id for r in requests if r.id not in drawn])
    complete = sorted((n for n, left in enumerate(missing) if left == 0), key=lambda n: n not in first)
    size = sampling.group_size
    return [[Sample(prompts[n], drawn[n * size + k]) for k in range(size)] for n in sorted(complete[:wanted])]
