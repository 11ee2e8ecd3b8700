"""From logits to a token and its logprob."""

import torch
from torch import Tensor

from fastgrpo.rollout.noise import uniform


def sample(
    logits: Tensor,  # [B, V] float32
    temperature: float,
    keys: Tensor,  # [B] int64, of each response
    token_positions: Tensor,  # [B] int64, place in the response
) -> tuple[Tensor, Tensor, Tensor]:  # ids [B] int64, logprobs [B], entropy [B]
    """Inverts the cumulative distribution at the response's own uniform draw; temperature 0 takes the maximum.

    Logprob and entropy (in nats, of the full vocabulary) are those of ``softmax(logits / temperature)``, for
    temperature 0 those of ``softmax(logits)``.
    """
    logprobs = torch.log_softmax(logits if temperature in (0, 1) else logits / temperature, dim=-1)
    probs = logprobs.exp()
    entropy = -(probs * logprobs).sum(-1)
    if temperature == 0:
        ids = logits.argmax(-1)
    else:
        cumulative = probs.double().cumsum_(-1)
        # Scaled by the sum, which is 1 only up to rounding: the draw stays below it and ids stay in the vocabulary.
        draw = uniform(keys, token_positions)[:, None] * cumulative[:, -1:]
        ids = torch.searchsorted(cumulative, draw, right=True).squeeze(1).clamp_(max=logits.shape[1] - 1)
    return ids, logprobs.gather(1, ids[:, None]).squeeze(1), entropy
