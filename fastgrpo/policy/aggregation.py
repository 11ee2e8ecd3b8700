"""How an update's loss is made of its tokens' losses: one denominator for the whole update, and weights of tokens.

The loss of a micro-batch is the sum of its weighted token losses over the denominator. Both are facts of the update, so
that its gradient does not depend on how it was cut; ``microbatch_mean`` alone does, as verl 0.4 did.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastgrpo.config import Aggregation
from fastgrpo.models.packed_batch import PackedBatch
from fastgrpo.types import Sample


def denominator(
    aggregation: Aggregation,
    update: Sequence[Sample],  # all that teach, also those that are left out of the passes
    max_response_tokens: int,
) -> int:
    """What the sum over all tokens of an update is divided by; at least 1."""
    if aggregation == "token_mean":
        return max(1, sum(s.response.num_sampled_tokens for s in update))
    per_response = max_response_tokens if aggregation == "sequence_mean_constant" else 1
    return max(1, len(update) * per_response)


def token_weights(
    aggregation: Aggregation, batch: PackedBatch
) -> Tensor | None:  # [R] float64, or None where all are 1
    """One over the length of its response for each token, where responses count alike."""
    if aggregation != "sequence_mean":
        return None
    lengths = batch.cu_responses.diff()
    return torch.repeat_interleave(1.0 / lengths.double(), lengths)


def verl_denominator(microbatch: Sequence[Sample], num_responses: int) -> float:
    """What a micro-batch's loss is divided by where verl 0.4's weights hold: its own token mean counts by its share of
    the responses of the update (thunlp/JustRL train/verl/workers/actor/dp_actor.py). One without any counts as 1."""
    num_tokens = max(1, sum(s.response.num_sampled_tokens for s in microbatch))
    return num_tokens * num_responses / len(microbatch) if microbatch else 1.0
