"""Tokens go from the ranks that judged them to those that train on them, all at once, and nowhere else."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from fastgrpo.algorithm.scoring import RecipeError
from fastgrpo.ranks import Ranks
from fastgrpo.types import Response, ResponseElsewhere, Sample

Plan = Sequence[Sequence[Sequence[Sample]]]
"""[rank][micro-batch]: the samples that each rank trains on, the same on all ranks but for who has the tokens."""

Move = tuple[int, int, Sample]
"""(rank that has the tokens, rank that trains on them, sample)."""

ROUND_BYTES = 2**23
"""No rank sends or gets much more at a time: what is under way is in memory twice."""


def with_tokens(plan: Plan, ranks: Ranks) -> list[list[Sample]]:
    """This rank's micro-batches, with the tokens of all their samples. All ranks take part.

    Raises RecipeError, on every rank, if they do not all have the same plan.
    """
    rounds = list(_rounds(plan))
    _require_same(rounds, ranks)
    found: dict[int, Sample] = {}
    for moves in rounds:
        found.update(_moved(moves, ranks))
    return [[found.get(id(sample), sample) for sample in batch] for batch in plan[ranks.rank]]


def _require_same(rounds: Sequence[Sequence[Move]], ranks: Ranks) -> None:
    told = [(home, rank, s.prompt.position, len(s.response)) for moves in rounds for home, rank, s in moves]
    mine = hashlib.sha256(np.array([*told, (len(rounds), 0, 0, 0)], dtype=np.int64).tobytes()).digest()
    everyone = ranks.gather([mine])
    if different := [rank for rank, one in enumerate(everyone) if one != everyone[0]]:
        raise RecipeError(
            f"rank {different[0]} plans the step's samples otherwise than the first rank: the recipe's functions "
            f"(shaping, advantages) must give the same on all ranks, so what they draw must be seeded by the step"
        )


def _rounds(plan: Plan) -> Iterator[list[Move]]:
    """What travels, the same on all ranks: so many micro-batches of every rank at a time as are small enough."""
    moves: list[Move] = []
    sent, received = [0] * len(plan), [0] * len(plan)  # bytes of each rank
    for batches in zip(*plan, strict=True):
        for rank, batch in enumerate(batches):
            for sample in batch:
                if sample.home is not None and sample.home != rank:
                    moves.append((sample.home, rank, sample))
                    sent[sample.home] += 4 * _num_values(sample)
                    received[rank] += 4 * _num_values(sample)
        if max(sent + received) > ROUND_BYTES:
            yield moves
            moves, sent, received = [], [0] * len(plan), [0] * len(plan)
    if moves:
        yield moves


def _moved(moves: Sequence[Move], ranks: Ranks) -> dict[int, Sample]:
    """The samples that this rank gets, with their tokens, by the identity of those without: they have no other key."""
    given: list[list[Sample]] = [[] for _ in range(ranks.count)]  # to each rank
    wanted: list[list[Sample]] = [[] for _ in range(ranks.count)]  # of each rank
    for home, rank, sample in moves:
        if home == ranks.rank:
            given[rank].append(sample)
        elif rank == ranks.rank:
            wanted[home].append(sample)
    counts = [sum(map(_num_values, samples)) for samples in wanted]
    received = ranks.exchange([_values(samples) for samples in given], counts)
    return {
        id(sample): whole
        for samples, values in zip(wanted, received, strict=True)
        for sample, whole in zip(samples, _with_values(samples, values), strict=True)
    }


def _values(samples: Sequence[Sample]) -> np.ndarray:
    """Ids, logprobs, and masks where there are some, as int32, response after response."""
    parts = [np.zeros(0, dtype=np.int32)]
    for response in (s.tokens for s in samples):
        parts += [response.response_ids, response.rollout_logprobs.view(np.int32)]
        if response.response_mask is not None and _values_a_token(response) == 3:
            parts.append(response.response_mask.astype(np.int32))
    return np.concatenate(parts)


def _num_values(sample: Sample) -> int:
    return len(sample.response) * _values_a_token(sample.response)


def _values_a_token(response: Response | ResponseElsewhere) -> int:
    return 3 if response.num_sampled_tokens < len(response) else 2


def _with_values(samples: Sequence[Sample], values: np.ndarray) -> list[Sample]:
    """The samples with the tokens of which `_values` made these."""
    whole, start = [], 0
    for sample in samples:
        end = start + _num_values(sample)
        whole.append(
            _with_tokens(sample, values[start:end].reshape(_values_a_token(sample.response), len(sample.response)))
        )
        start = end
    return whole


def _with_tokens(sample: Sample, rows: np.ndarray) -> Sample:
    about = sample.response
    response = Response(
        response_ids=rows[0],
        rollout_logprobs=rows[1].view(np.float32),
        finish_reason=about.finish_reason,
        policy_version=about.sampled_by[0][0] if about.sampled_by else 0,
        mean_entropy=about.mean_entropy,
        response_mask=rows[2].astype(bool) if len(rows) > 2 else None,
    )
    return replace(sample, response=response)
