"""Log-probabilities and entropy straight from hidden states, for any loss: four matmuls, one chunk of logits.

The gradient of the loss is not known in the forward pass, so the backward pass computes each chunk's logits again.
Where the loss is GRPO's, `linear_grpo` needs three.
"""

from typing import Any

import torch
from torch import Tensor

from fastgrpo_kernels.checks import head_inputs, logit_transform, require, split_temperature
from fastgrpo_kernels.dispatch import running_on
from fastgrpo_kernels.head import HeadGradients, make_head
from fastgrpo_kernels.primitives import LogitTransform, RowStats, statistics_dtype


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

    Raises ValueError for shapes, dtypes and constants that do not fit, and for a sharded weight.
    """
    hidden, weight, bias, target_ids = head_inputs(hidden, weight, bias, target_ids)
    transform = logit_transform(temperature, softcap, len(hidden), hidden.dtype)
    require(chunk_tokens is None or chunk_tokens > 0, lambda: f"chunk_tokens must be above 0, got {chunk_tokens}")
    logprobs, _, entropies = _forward(
        hidden, weight, bias, target_ids, *split_temperature(transform), transform.softcap, entropy, chunk_tokens or 0
    )
    return logprobs, entropies if entropy else None


@torch.library.custom_op("fastgrpo::linear_logprobs", mutates_args=())
def _forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target_ids: Tensor,
    temperature: float,
    temperatures: Tensor | None,
    softcap: float,
    entropy: bool,
    chunk_tokens: int,
) -> tuple[Tensor, Tensor, Tensor]:  # logprobs, lse, entropy: [T], the last [0] unless asked for
    with running_on(hidden):
        transform = LogitTransform(temperature if temperatures is None else temperatures, softcap)
        head = make_head(hidden, weight, bias, target_ids, transform, chunk_tokens, keep_logits=False)
        out = _outputs(hidden, entropy)
        for rows in head.chunks():
            for to, values in zip(out, head.look(rows, entropy), strict=True):
                if values is not None:
                    to[rows] = values
    return out


def _outputs(hidden: Tensor, entropy: bool) -> tuple[Tensor, Tensor, Tensor]:
    dtype = statistics_dtype(hidden.dtype)
    lengths = (len(hidden), len(hidden), len(hidden) if entropy else 0)
    logprobs, lse, entropies = (hidden.new_empty(n, dtype=dtype) for n in lengths)
    return logprobs, lse, entropies


@_forward.register_fake
def _(hidden, weight, bias, target_ids, temperature, temperatures, softcap, entropy, chunk_tokens):  # type: ignore[no-untyped-def]
    return _outputs(hidden, entropy)


@torch.library.custom_op("fastgrpo::linear_logprobs_backward", mutates_args=())
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
    entropies: Tensor,  # [0] where the entropy has no gradient
    grad_logprobs: Tensor | None,
    grad_entropy: Tensor | None,
    need_hidden: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # of hidden, weight and bias; [0] where not needed
    if grad_logprobs is None:
        grad_logprobs = torch.zeros_like(logprobs)
    grad_logprobs = grad_logprobs.contiguous()
    grad_entropy = None if grad_entropy is None else grad_entropy.contiguous()
    with running_on(hidden):
        transform = LogitTransform(temperature if temperatures is None else temperatures, softcap)
        keep_exact = grad_entropy is not None
        head = make_head(hidden, weight, bias, target_ids, transform, chunk_tokens, keep_exact=keep_exact)
        gradients = HeadGradients(head, need_hidden, need_weight, need_bias)
        for rows in head.chunks():
            head.look_again(rows)
            stats = RowStats(logprobs[rows], lse[rows], entropies[rows] if keep_exact else None)
            of_entropy = None if grad_entropy is None else grad_entropy[rows]
            gradients.add(rows, head.gradient(rows, stats, grad_logprobs[rows], of_entropy))
        return gradients.finished(hidden.dtype, hidden.dtype)


@_backward.register_fake
def _(hidden, weight, bias, *args):  # type: ignore[no-untyped-def]
    need_hidden, need_weight, need_bias = args[-3:]
    return (
        torch.empty_like(hidden) if need_hidden else hidden.new_empty(0),
        torch.empty_like(weight) if need_weight else hidden.new_empty(0),
        torch.empty_like(bias) if need_bias else hidden.new_empty(0),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, bias, target_ids, temperature, temperatures, softcap, _, chunk_tokens = inputs
    ctx.save_for_backward(hidden, weight, bias, target_ids, temperatures, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.constants = temperature, softcap, chunk_tokens


def _autograd(
    ctx: Any, grad_logprobs: Tensor | None, _: Tensor | None, grad_entropy: Tensor | None
) -> tuple[Tensor | None, ...]:
    hidden, weight, bias, target_ids, temperatures, logprobs, lse, entropies = ctx.saved_tensors
    temperature, softcap, chunk_tokens = ctx.constants
    needed = ctx.needs_input_grad[:3]
    gradients = _backward(
        hidden, weight, bias, target_ids, temperature, temperatures, softcap, chunk_tokens,
        logprobs, lse, entropies, grad_logprobs, grad_entropy if len(entropies) else None, *needed,
    )  # fmt: skip
    return (*(g if n else None for g, n in zip(gradients, needed, strict=True)), *[None] * 6)


_forward.register_autograd(_autograd, setup_context=_setup_context)


def linear_logits(
    hidden: Tensor,  # [T, D]
    weight: Tensor,  # [V, D]
    bias: Tensor | None = None,  # [V]
) -> Tensor:  # [T, V] float32, or float64 for float64 inputs
    """Logits as the matmul accumulated them, for sampling: rounded to bfloat16 they would be off by up to 0.08.

    A fresh tensor without gradient.
    """
    hidden, weight, bias = hidden.detach(), weight.detach(), None if bias is None else bias.detach()
    head = make_head(hidden, weight, bias, hidden.new_zeros(len(hidden), dtype=torch.int64), LogitTransform(),
                     max(len(hidden), 1), keep_exact=True)  # fmt: skip
    rows = slice(0, len(hidden))
    head.look_again(rows)
    return head.logits(rows)
