"""Log-probabilities and entropy straight from hidden states, for any loss: four matmuls, one chunk of logits.

The gradient of the loss is not known in the forward pass, so the backward pass computes each chunk's logits again.
Where the loss is GRPO's, `linear_grpo` needs three.
"""

from typing import Any

import torch
from torch import Tensor

from ._ops import add_op_namespace_prefix
from .checks import check_dtypes, check_head, linear_inputs
from .derivatives import check_derivatives, first_derivative_only
from .dispatch import running_on
from .head import HeadGradients, LinearInputs, empty_gradients, make_head
from .head.logits import LogitsHead
from .primitives import LogitTransform, RowStats, statistics_dtype


def linear_logprobs(
    hidden: Tensor,  # [T, D]
    weight: Tensor,  # [V, D]
    target_ids: Tensor,  # [T] int64
    *,
    bias: Tensor | None = None,  # [V]
    temperature: float | Tensor = 1.0,  # or [T]
    softcap: float | None = None,
    entropy: bool = False,
    chunk_tokens: int | None = None,
) -> tuple[Tensor, Tensor | None]:  # logprobs [T], entropy [T] if asked for
    """Log-softmax of the logits at the targets, and the entropy of the whole distribution in nats.

    The logits are ``hidden @ weight.T + bias``, bent by ``softcap * tanh(logits / softcap)`` where a softcap is given
    (Gemma 2), divided by the temperature. Both results are float32 (float64 for float64 inputs) from float32
    accumulators over the full vocabulary, and differentiable in hidden, weight and bias, not in the temperature. At
    most ``chunk_tokens`` rows of logits exist at one time; None chooses. Without a gradient to come, a 16-bit call on a
    GPU makes no logits at all.

    Raises ValueError for shapes, dtypes and constants that do not fit, and for a sharded weight; NotImplementedError
    for forward mode, torch.func and second derivatives.
    """
    inputs = linear_inputs("linear_logprobs", hidden, weight, bias, target_ids, temperature, softcap, chunk_tokens)
    logprobs, _, entropies = _forward(*inputs.encode(), entropy)
    return logprobs, entropies if entropy else None


@torch.library.custom_op(add_op_namespace_prefix("linear_logprobs"), mutates_args=())
def _forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target_ids: Tensor,
    temperature: float,
    temperatures: Tensor | None,
    softcap: float,
    chunk_tokens: int,
    entropy: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # RowStats
    transform = LogitTransform.decode(temperature, temperatures, softcap)
    stats = RowStats.empty(hidden, entropy)
    with running_on(hidden):
        head = make_head(LinearInputs(hidden, weight, bias, target_ids, transform, chunk_tokens), gradient=False)
        for rows in head.chunks():
            stats.write(rows, head.forward(rows, entropy))
    return stats.encode()


@_forward.register_fake
def _(hidden: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return RowStats.empty(hidden, entropy=rest[-1]).encode()


@torch.library.custom_op(add_op_namespace_prefix("linear_logprobs_backward"), mutates_args=())
def _backward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target_ids: Tensor,
    temperature: float,
    temperatures: Tensor | None,
    softcap: float,
    chunk_tokens: int,
    logprobs: Tensor,
    lse: Tensor,
    grad_logprobs: Tensor | None,
    grad_entropy: Tensor | None,
    need_hidden: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # gradients of hidden, weight and bias; [0] where not needed
    transform = LogitTransform.decode(temperature, temperatures, softcap)
    of_logprobs = torch.zeros_like(logprobs) if grad_logprobs is None else grad_logprobs.contiguous()
    of_entropy = None if grad_entropy is None else grad_entropy.contiguous()
    stats = RowStats(logprobs, lse, None)
    with running_on(hidden):
        inputs = LinearInputs(hidden, weight, bias, target_ids, transform, chunk_tokens)
        head = make_head(inputs, gradient=True, of_entropy=of_entropy is not None)
        gradients = HeadGradients(head, need_hidden, need_weight, need_bias)
        for rows in head.chunks():
            if of_entropy is None:
                head.recompute(rows, lse[rows])
                gradients.add(rows, head.gradient(rows, stats.of(rows), of_logprobs[rows], None))
            else:  # by statistics of these very logits: those of the forward pass may be rounded otherwise
                own = head.forward(rows, entropy=True)
                gradients.add(rows, head.gradient(rows, own, of_logprobs[rows], of_entropy[rows]))
        return gradients.finished(hidden.dtype, hidden.dtype)


@_backward.register_fake
def _(hidden: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return empty_gradients(hidden, weight, bias, needed=rest[-3:], dtype_of_sums=hidden.dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, bias, target_ids, temperature, temperatures, softcap, chunk_tokens, entropy = inputs
    ctx.save_for_backward(hidden, weight, bias, target_ids, temperatures, *output[:2])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.constants = temperature, softcap, chunk_tokens, entropy


def _autograd(
    ctx: Any, grad_logprobs: Tensor | None, _: Tensor | None, grad_entropy: Tensor | None
) -> tuple[Tensor | None, ...]:
    first_derivative_only("linear_logprobs")
    hidden, weight, bias, target_ids, temperatures, logprobs, lse = ctx.saved_tensors
    temperature, softcap, chunk_tokens, entropy = ctx.constants
    needed = ctx.needs_input_grad[:3]
    gradients = _backward(
        hidden, weight, bias, target_ids, temperature, temperatures, softcap, chunk_tokens,
        logprobs, lse, grad_logprobs, grad_entropy if entropy else None, *needed,
    )  # fmt: skip
    return (*(g if n else None for g, n in zip(gradients, needed, strict=True)), *[None] * 6)


_forward.register_autograd(_autograd, setup_context=_setup_context)


def linear_logits(
    hidden: Tensor,  # [T, D]
    weight: Tensor,  # [V, D]
    bias: Tensor | None = None,  # [V]
) -> Tensor:  # [T, V] float32, or float64 for float64 inputs
    """Logits as the matmul accumulated them, for sampling: rounded to bfloat16 they would be off by up to 0.08.

    A fresh tensor without gradient. Raises as `linear_logprobs` does.
    """
    target_ids, num_tokens = hidden.new_zeros(len(hidden), dtype=torch.int64), len(hidden)
    check_head(hidden, weight, bias, target_ids)
    check_dtypes(hidden, weight, bias)
    check_derivatives("linear_logits", {"hidden": hidden, "weight": weight, "bias": bias}, {})
    if hidden.is_meta:
        return hidden.new_empty(num_tokens, len(weight), dtype=statistics_dtype(hidden.dtype))
    hidden, weight, bias = hidden.detach(), weight.detach(), None if bias is None else bias.detach()
    head = LogitsHead(LinearInputs(hidden, weight, bias, target_ids, LogitTransform(), max(num_tokens, 1)))
    rows = slice(0, num_tokens)
    head.compute(rows)
    return head.logits(rows)
