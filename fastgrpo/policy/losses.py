"""Three ways from a packed micro-batch to the same loss. `fused` is what a run takes; the others check it.

The clipped ratio is the kernels': `fastgrpo_kernels.reference` defines it, `fastgrpo_kernels.objective` says what runs.
"""

from collections.abc import Callable
from functools import partial
from typing import TypedDict

from fastgrpo_kernels import GrpoOutput, Objective, grpo_loss, linear_grpo, reference
from torch import Tensor

from fastgrpo.models.packed_batch import PackedBatch
from fastgrpo.policy.policy import Policy

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
    return GrpoOutput(loss, logprobs.detach(), entropies, ratio, metrics)


def by_definition(
    policy: Policy, batch: PackedBatch, num_loss_tokens: int | float, objective: Objective, entropy: bool
) -> GrpoOutput:
    """All logits of the micro-batch at once, and autograd: the kernels' reference."""

    def definition(
        hidden: Tensor, weight: Tensor, target_ids: Tensor, /, *, bias: Tensor | None, temperature: float, **_: object
    ) -> tuple[Tensor, Tensor]:
        return reference.linear_logprobs(hidden, weight, target_ids, bias=bias, temperature=temperature)

    logprobs, entropies = policy(batch, entropy, definition)
    advantages = batch.at_responses(batch.advantages).to(logprobs.dtype)
    known = _known(batch, objective)
    loss = reference.grpo_loss(logprobs, batch.old_logprobs, advantages, num_loss_tokens, objective, entropy=entropies,
                               **known)  # fmt: skip
    seen = grpo_loss(logprobs.detach(), batch.old_logprobs, advantages, None, num_loss_tokens, objective,
                     entropy=entropies.detach(), **known)  # fmt: skip
    return GrpoOutput(loss, logprobs.detach(), entropies, seen.ratio, seen.metrics)


class _Known(TypedDict):
    ref_logprobs: Tensor | None  # [R]
    rollout_logprobs: Tensor | None  # [R]
    cu_seqlens: Tensor | None  # [S + 1], of the R response tokens


def _known(batch: PackedBatch, objective: Objective) -> _Known:
    """What the divergence and the correction for the sampler read; without them nothing, so that nothing is paid."""
    corrects, whole = objective.correction != "none", objective.needs_whole_responses
    return {
        "ref_logprobs": batch.ref_logprobs,
        "rollout_logprobs": batch.at_responses(batch.rollout_logprobs) if corrects else None,
        "cu_seqlens": batch.cu_responses if whole else None,
    }


LOSSES: dict[str, Loss] = {"fused": fused, "logprobs": from_logprobs, "definition": by_definition}
