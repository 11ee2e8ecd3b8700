"""Tokens go from the ranks that judged them to those that train on them, all at once, and nowhere else."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fastgrpo.ranks import Ranks
from fastgrpo.types import Response, ResponseElsewhere, Sample

Plan = Sequence[Sequence[Sequence[Sample]]]
"""[rank][micro-batch]: the samples that each rank trains on, the same on all ranks but for who has the tokens."""


def with_tokens(plan: Plan, ranks: Ranks) -> list[list[Sample]]:
    """This rank's micro-batches, with the tokens of all their samples. All ranks take part."""
    moves = [
        (sample.home, rank, sample)
        for rank, batches in enumerate(plan)
        for batch in batches
        for sample in batch
        if sample.home is not None and sample.home != rank
    ]
    if not moves:
        return [list(batch) for batch in plan[ranks.rank]]
    given: list[list[Sample]] = [[] for _ in range(ranks.count)]  # to each rank
    wanted: list[list[Sample]] = [[] for _ in range(ranks.count)]  # of each rank
    for home, rank, sample in moves:
        if home == ranks.rank:
            given[rank].append(sample)
        elif rank == ranks.rank:
            wanted[home].append(sample)
    received = ranks.exchange([_values(samples) for samples in given], [_num_values(samples) for samples in wanted])
    found = {
        id(sample): whole
        for samples, values in zip(wanted, received, strict=True)
        for sample, whole in zip(samples, _with_values(samples, values), strict=True)
    }
    return [[found.get(id(sample), sample) for sample in batch] for batch in plan[ranks.rank]]


def _values(samples: Sequence[Sample]) -> np.ndarray:
    """Ids, logprobs, and masks where there are some, as int32, response after response."""
    parts = [np.zeros(0, dtype=np.int32)]
    for response in (s.tokens for s in samples):
        parts += [response.response_ids, response.rollout_logprobs.view(np.int32)]
        if response.response_mask is not None and _values_a_token(response) == 3:
            parts.append(response.response_mask.astype(np.int32))
    return np.concatenate(parts)


def _num_values(samples: Sequence[Sample]) -> int:
    return sum(len(s.response) * _values_a_token(s.response) for s in samples)


def _values_a_token(response: Response | ResponseElsewhere) -> int:
    return 3 if response.num_sampled_tokens < len(response) else 2


def _with_values(samples: Sequence[Sample], values: np.ndarray) -> list[Sample]:
    """The samples with the tokens of which `_values` made these."""
    whole, start = [], 0
    for sample in samples:
        shape = _values_a_token(sample.response), len(sample.response)
        whole.append(_with_tokens(sample, values[start : start + shape[0] * shape[1]].reshape(shape)))
        start += shape[0] * shape[1]
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
