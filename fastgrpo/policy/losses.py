"""Three ways from a packed micro-batch to the same loss. `fused` is what a run takes; the others check it.

The published losses are the kernels': `fastgrpo_kernels.reference` defines them, `fastgrpo_kernels.objective` says what
runs. A recipe's own loss is plain torch on logprobs (`of_recipe`).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import TypedDict

import torch
from fastgrpo_kernels import METRICS, GrpoOutput, Objective, grpo_loss, linear_grpo, reference
from torch import Tensor

from fastgrpo.config import ObjectiveConfig
from fastgrpo.models.packed_batch import PackedBatch
from fastgrpo.policy.own_loss import OwnLoss, tokens_of
from fastgrpo.policy.policy import Policy
from fastgrpo.policy.token_sums import CLIPPED

Loss = Callable[[Policy, PackedBatch, int | float, Objective, bool], GrpoOutput]
"""(policy, batch, num_loss_tokens, objective, whether entropy is wanted) -> output over the R response tokens."""


def fused(
    policy: Policy, batch: PackedBatch, num_loss_tokens: int | float, objective: Objective, entropy: bool
) -> GrpoOutput:
    """Loss and gradient while a chunk's logits are live: three matmuls of the LM head."""
    op = partial(
        linear_grpo,
        old_logprobs=batch.old_logprobs,
        advantages=batch.at_responses(batch.advantages),
        response_mask=None,
        num_loss_tokens=num_loss_tokens,
        objective=objective,
        **_known(batch, objective),
    )
    return policy(batch, entropy, op)


def from_logprobs(
    policy: Policy, batch: PackedBatch, num_loss_tokens: int | float, objective: Objective, entropy: bool
) -> GrpoOutput:
    """Logprobs, then the loss: four matmuls. Any policy that gives logprobs will do."""
    logprobs, entropies = policy(batch, entropy or objective.entropy_coef > 0)
    advantages = batch.at_responses(batch.advantages)
    known = _known(batch, objective)
    loss, ratio, metrics = grpo_loss(
        logprobs, batch.old_logprobs, advantages, None, num_loss_tokens, objective, entropy=entropies, **known
    )
    loss = loss + _penalty(batch, logprobs, num_loss_tokens)
    return GrpoOutput(loss, logprobs.detach(), entropies, ratio, metrics)


def of_recipe(own: OwnLoss) -> Loss:
    """A recipe's own loss of tokens in the place of the surrogate, on logprobs and entropies: four matmuls."""

    def loss(
        policy: Policy, batch: PackedBatch, num_loss_tokens: int | float, objective: Objective, entropy: bool
    ) -> GrpoOutput:
        logprobs, entropies = policy(batch, True)
        assert entropies is not None
        each = own(tokens_of(batch, logprobs, entropies))
        no_advantages = torch.zeros_like(logprobs)
        rest, ratio, metrics = grpo_loss(
            logprobs, batch.old_logprobs, no_advantages, None, num_loss_tokens, objective, entropy=entropies,
            **_known(batch, objective),
        )  # fmt: skip
        total = weighted_sum(each, batch) / num_loss_tokens + rest
        return GrpoOutput(total, logprobs.detach(), entropies, ratio, _nothing_is_clipped(metrics))

    return loss


def _nothing_is_clipped(metrics: Tensor) -> Tensor:
    """What a recipe's own loss clips, nobody knows."""
    known = metrics.clone()
    for i, name in enumerate(METRICS):
        if name in CLIPPED:
            known[i] = math.nan
    return known


def weighted_sum(values: Tensor, batch: PackedBatch) -> Tensor:  # [R] -> []
    """The sum over the tokens of a micro-batch, each with its weight."""
    return (values if batch.token_weights is None else values * batch.token_weights.to(values.dtype)).sum()


def _penalty(batch: PackedBatch, logprobs: Tensor, num_loss_tokens: int | float) -> Tensor | float:
    """KL-Cov's: the sizes of the log-ratios that are penalised."""
    if batch.log_ratio_penalties is None or batch.old_logprobs is None:
        return 0.0  # before the first update of a step every log-ratio is 0
    sizes = (logprobs - batch.old_logprobs).abs() * batch.log_ratio_penalties.to(logprobs.dtype)
    return weighted_sum(sizes, batch) / num_loss_tokens


def by_definition(
    policy: Policy, batch: PackedBatch, num_loss_tokens: int | float, objective: Objective, entropy: bool
) -> GrpoOutput:
    """All logits of the micro-batch at once, and autograd: the kernels' reference."""

    def definition(
        hidden: Tensor, weight: Tensor, target_ids: Tensor, /, *, bias: Tensor | None, temperature: float,
        softcap: float | None, **_: object,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        return reference.linear_logprobs(
            hidden, weight, target_ids, bias=bias, temperature=temperature, softcap=softcap
        )

    logprobs, entropies = policy(batch, entropy, definition)
    advantages = batch.at_responses(batch.advantages).to(logprobs.dtype)
    known = _known(batch, objective)
    loss = reference.grpo_loss(logprobs, batch.old_logprobs, advantages, num_loss_tokens, objective, entropy=entropies,
                               **known).to(logprobs.dtype)  # fmt: skip
    loss = loss + _penalty(batch, logprobs, num_loss_tokens)
    seen = grpo_loss(logprobs.detach(), batch.old_logprobs, advantages, None, num_loss_tokens, objective,
                     entropy=entropies.detach(), **known)  # fmt: skip
    return GrpoOutput(loss, logprobs.detach(), entropies, seen.ratio, seen.metrics)


class _Known(TypedDict):
    ref_logprobs: Tensor | None  # [R]
    rollout_logprobs: Tensor | None  # [R]
    cu_seqlens: Tensor | None  # [S + 1], of the R response tokens
    token_weights: Tensor | None  # [R]


def _known(batch: PackedBatch, objective: Objective) -> _Known:
    """What parts of the loss read besides advantages; without them nothing, so that nothing is paid."""
    corrects, whole = objective.correction != "none", objective.needs_whole_responses
    return {
        "ref_logprobs": batch.ref_logprobs,
        "rollout_logprobs": batch.at_responses(batch.rollout_logprobs) if corrects else None,
        "cu_seqlens": batch.cu_responses if whole else None,
        "token_weights": batch.token_weights,
    }


LOSSES: dict[str, Loss] = {"fused": fused, "logprobs": from_logprobs, "definition": by_definition}


def loss_of(config: ObjectiveConfig, own: OwnLoss | None) -> Loss:
    """The way that the settings, or a recipe's own loss, take."""
    if own is not None:
        return of_recipe(own)
    needs_logprobs = config.kl_cov > 0
    return LOSSES[("logprobs" if needs_logprobs else "fused") if config.loss_path == "auto" else config.loss_path]
