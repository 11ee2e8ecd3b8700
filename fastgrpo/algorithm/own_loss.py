"""A loss of a recipe's own: ``Algorithm(loss=my_loss)``, a function of `Tokens`."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Tokens:
    """The R response tokens of a micro-batch, response after response, on the device of the policy.

    Logprobs are those of the sampled tokens, at the sampling temperature over the full vocabulary. With
    --objective.old_logprobs rollout the sampler's stand for the old ones in every update.
    """

    logprobs: Tensor  # [R] under the weights being updated, with gradient
    entropy: Tensor  # [R] of the whole distribution in nats, with gradient
    old_logprobs: Tensor  # [R] before the step's first update; in that one the current ones, without gradient
    rollout_logprobs: Tensor  # [R] as the sampler returned them
    ref_logprobs: Tensor | None  # [R] of the reference, which --objective.kl_coef above 0 loads
    advantages: Tensor  # [R]
    cu_seqlens: Tensor  # [S + 1] int32, where each of the S responses begins among the R tokens, then R


TokenLoss = Callable[[Tokens], Tensor]
"""(tokens) -> loss of each token [R], differentiable in their logprobs, their entropy, or both."""
