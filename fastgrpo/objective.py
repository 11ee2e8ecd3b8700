"""The token objective: what one response token contributes to the loss."""

import torch
from torch import Tensor


def clipped_surrogate(
    ratio: Tensor,  # [R] new over old probability of the sampled token
    advantages: Tensor,  # [R]
    clip_low: float,
    clip_high: float,
) -> Tensor:  # [R]
    """PPO's pessimistic bound (Schulman 2017, eq. 7) with DAPO's separate upper width."""
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    return torch.minimum(ratio * advantages, clipped * advantages)


def dual_clipped_surrogate(
    ratio: Tensor,  # [R]
    advantages: Tensor,  # [R]
    clip_low: float,
    clip_high: float,
    dual_clip: float,
) -> Tensor:  # [R]
    """The surrogate with a floor of ``dual_clip * advantage`` where the advantage is negative (Ye 2020, eq. 5).

    Without it a token that became much more probable in a bad response has an unbounded loss.
    """
    surrogate = clipped_surrogate(ratio, advantages, clip_low, clip_high)
    floored = torch.maximum(surrogate, dual_clip * advantages)
    return torch.where(advantages < 0, floored, surrogate)


def grpo_loss(
    logprobs: Tensor,  # [R] has the gradient
    old_logprobs: Tensor,  # [R]
    advantages: Tensor,  # [R]
    num_loss_tokens: int,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float,
) -> tuple[Tensor, Tensor]:  # loss [], clipped [R] bool
    """Minus the surrogate, summed over these response tokens and divided by those of the whole update.

    With one ``num_loss_tokens`` for all ranks and micro-batches the sum of the losses, and of their gradients, is the
    token mean over the update however it was partitioned (DAPO, eq. 8). ``clipped`` marks the tokens whose gradient
    the bounds removed.
    """
    # exp overflows in float32 at 88: a token that far off has no gradient left to lose.
    ratio = (logprobs - old_logprobs).clamp(-20.0, 20.0).exp()
    surrogate = dual_clipped_surrogate(ratio, advantages, clip_low, clip_high, dual_clip)
    above = (advantages > 0) & (ratio > 1 + clip_high)
    below = (advantages < 0) & ((ratio < 1 - clip_low) | (ratio > dual_clip))
    return -surrogate.sum() / num_loss_tokens, (above | below).detach()
