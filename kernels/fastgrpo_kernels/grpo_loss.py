"""The token objective (objective.py) on logprobs that were computed before, and its derivative in the same pass."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._ops import add_op_namespace_prefix
from .checks import FLOATS, loss_token_count, require, token_fields
from .derivatives import check_derivatives, first_derivative_only
from .dispatch import running_on
from .objective import METRICS, Objective
from .primitives import TokenFields, statistics_dtype


class LossOutput(NamedTuple):
    """The loss, which alone has a gradient, and what describes it."""

    loss: Tensor  # []
    ratio: Tensor  # [T], 0 outside the response mask
    metrics: Tensor  # [len(METRICS)] float64, sums over response tokens


def grpo_loss(
    logprobs: Tensor,  # [T]
    old_logprobs: Tensor | None,  # [T]; None: the current ones, as in the first update of a step
    advantages: Tensor,  # [T]
    response_mask: Tensor | None,  # [T] bool; None: every token is a response's
    num_loss_tokens: int | float | Tensor,  # response tokens of the whole update, over all ranks and micro-batches
    objective: Objective | None = None,
    *,
    entropy: Tensor | None = None,  # [T]
    ref_logprobs: Tensor | None = None,  # [T]
    rollout_logprobs: Tensor | None = None,  # [T]
    token_weights: Tensor | None = None,  # [T]
    cu_seqlens: Tensor | None = None,  # [S + 1]
) -> LossOutput:
    """Loss of these tokens, see `objective.py`, differentiable in logprobs and entropy.

    With one ``num_loss_tokens`` for all ranks and micro-batches the sum of their losses, and of their gradients, is the
    token mean over the update however it was partitioned (DAPO, eq. 8). ``token_weights`` express other means: for the
    mean of each response's mean, ``num_loss_tokens / (num_responses * length)``; for Dr.GRPO's constant,
    ``num_loss_tokens / (num_responses * max_response_tokens)``.

    Raises ValueError for shapes and dtypes that do not fit, for what the objective needs and did not get, and for a
    field that asks for a gradient; NotImplementedError for forward mode, torch.func and second derivatives.
    """
    objective = objective or Objective()
    require(logprobs.dim() == 1, lambda: f"logprobs must be [T], got {list(logprobs.shape)}")
    for name, values in (("logprobs", logprobs), ("entropy", entropy)):
        if values is not None and values.dtype not in FLOATS:
            raise ValueError(f"{name} must have 16, 32 or 64 bits and a point, got {values.dtype}")
    check_derivatives("grpo_loss", {"logprobs": logprobs, "entropy": entropy}, {})
    require(
        not objective.entropy_coef or entropy is not None,
        lambda: f"entropy_coef {objective.entropy_coef} needs the entropy of every token",
    )
    require(entropy is None or entropy.shape == logprobs.shape, "entropy must be [T] as logprobs are")
    fields = TokenFields(
        old_logprobs, advantages, response_mask, ref_logprobs, rollout_logprobs, token_weights, cu_seqlens
    )
    dtype = statistics_dtype(logprobs.dtype)
    loss, ratio, metrics, *_ = _grpo_loss(
        logprobs.to(dtype), None if entropy is None else entropy.to(dtype),
        *token_fields("grpo_loss", fields, objective, logprobs),
        loss_token_count(num_loss_tokens, logprobs), objective.encode(),
    )  # fmt: skip
    return LossOutput(loss, ratio, metrics)


@torch.library.custom_op(add_op_namespace_prefix("grpo_loss"), mutates_args=())
def _grpo_loss(
    logprobs: Tensor,
    entropy: Tensor | None,
    old_logprobs: Tensor | None,
    advantages: Tensor,
    response_mask: Tensor | None,
    ref_logprobs: Tensor | None,
    rollout_logprobs: Tensor | None,
    token_weights: Tensor | None,
    cu_seqlens: Tensor | None,
    num_loss_tokens: Tensor,
    objective: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # loss, ratio, metrics, d logprobs, d entropy ([0] without bonus)
    fields = TokenFields(
        old_logprobs, advantages, response_mask, ref_logprobs, rollout_logprobs, token_weights, cu_seqlens
    )
    with running_on(logprobs) as primitives:
        loss, of_logprobs, of_entropy, ratio, metrics = primitives.token_objective(
            logprobs.contiguous(), None if entropy is None else entropy.contiguous(), fields, num_loss_tokens,
            Objective.decode(objective),
        )  # fmt: skip
    return loss, ratio, metrics, of_logprobs, logprobs.new_empty(0) if of_entropy is None else of_entropy


@_grpo_loss.register_fake
def _(logprobs: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    bonus = Objective.decode(rest[-1]).entropy_coef != 0
    return (
        logprobs.new_empty(()),
        torch.empty_like(logprobs),
        logprobs.new_empty(len(METRICS), dtype=torch.float64),
        torch.empty_like(logprobs),
        torch.empty_like(logprobs) if bonus else logprobs.new_empty(0),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.num_inputs = len(inputs)
    ctx.save_for_backward(*output[-2:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    first_derivative_only("grpo_loss")
    of_logprobs, of_entropy = ctx.saved_tensors
    nothing = [None] * (ctx.num_inputs - 2)
    if grad_loss is None:
        return (None, None, *nothing)
    with_bonus = len(of_entropy) and ctx.needs_input_grad[1]
    return (of_logprobs * grad_loss, of_entropy * grad_loss if with_bonus else None, *nothing)


_grpo_loss.register_autograd(_autograd, setup_context=_setup_context)
