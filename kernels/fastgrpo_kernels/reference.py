"""Plain-torch meaning of every op: the readable definition, and in float64 the oracle of the tests."""

import torch
from torch import Tensor


def linear_logprobs(
    hidden: Tensor,  # [T, D]
    weight: Tensor,  # [V, D]
    target_ids: Tensor,  # [T] int64
    *,
    bias: Tensor | None = None,  # [V]
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:  # [T], [T]
    """Log-probability of each target and entropy of the whole vocabulary, by the definition: all logits at once."""
    logits = torch.nn.functional.linear(hidden, weight, bias) / temperature
    logprobs = torch.log_softmax(logits, dim=-1)
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    return logprobs.gather(1, target_ids[:, None]).squeeze(1), entropy
