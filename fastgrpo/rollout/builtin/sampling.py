"""From logits to a token and its logprob."""

import torch
from torch import Tensor

from fastgrpo.rollout.sampling_noise import uniform


def sample(
    logits: Tensor,  # [B, V] float32
    temperature: float,
    keys: Tensor,  # [B] int64, of each response
    token_positions: Tensor,  # [B] int64, place in the response
    top_p: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:  # ids [B] int64, logprobs [B], entropy [B]
    """Inverts the cumulative distribution at the response's own uniform draw; temperature 0 takes the maximum.

    Below 1, `top_p` draws from the nucleus alone (Holtzman 2020, section 3.1): the fewest most probable tokens whose
    probabilities sum to `top_p` at least; of tokens that are equally probable the first ones.

    Logprob and entropy (in nats, of the full vocabulary) are those of ``softmax(logits / temperature)``, for
    temperature 0 those of ``softmax(logits)``.
    """
    logprobs = torch.log_softmax(logits if temperature in (0, 1) else logits / temperature, dim=-1)
    probs = logprobs.exp()
    entropy = -(probs * logprobs).sum(-1)
    if temperature == 0:
        ids = logits.argmax(-1)
    else:
        cumulative = (probs.double() if top_p >= 1 else nucleus(probs.double(), top_p)).cumsum_(-1)
        # Scaled by the sum, which is 1 only up to rounding: the draw stays below it and ids stay in the vocabulary.
        draw = uniform(keys, token_positions)[:, None] * cumulative[:, -1:]
        ids = torch.searchsorted(cumulative, draw, right=True).squeeze(1).clamp_(max=logits.shape[1] - 1)
    return ids, logprobs.gather(1, ids[:, None]).squeeze(1), entropy


def nucleus(probs: Tensor, top_p: float) -> Tensor:  # [B, V] -> [B, V]
    """The probabilities with zeros outside the nucleus; not scaled to a sum of 1."""
    ordered, ids = probs.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    return torch.zeros_like(probs).scatter_(1, ids, ordered.masked_fill_(before >= top_p, 0.0))
