"""Log-probabilities and entropy straight from hidden states: logits exist for one chunk of tokens at a time.

Plain torch on every device. The backward pass recomputes each chunk's logits, so a training step costs four matmuls of
the LM head where three are the minimum, and memory is that of one chunk.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def linear_logprobs(
    hidden: Tensor,  # [T, D]
    weight: Tensor,  # [V, D]
    target_ids: Tensor,  # [T] int64
    *,
    bias: Tensor | None = None,  # [V]
    temperature: float = 1.0,
    entropy: bool = True,
    chunk_tokens: int = 1024,
) -> tuple[Tensor, Tensor | None]:  # logprobs [T], entropy [T] if asked for
    """Log-softmax of ``(hidden @ weight.T + bias) / temperature`` at the targets, and its entropy in nats.

    Both are float32 (float64 for float64 inputs), from float32 accumulators, over the full vocabulary, and
    differentiable in hidden, weight and bias. At most ``chunk_tokens`` rows of logits exist at one time.

    Raises ValueError for a temperature that is not above 0 or shapes that do not fit.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if hidden.shape[0] != target_ids.shape[0] or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"need hidden [T, D], weight [V, D] and target_ids [T], got {list(hidden.shape)}, {list(weight.shape)} "
            f"and {list(target_ids.shape)}"
        )
    return _LinearLogprobs.apply(hidden, weight, bias, target_ids, temperature, entropy, chunk_tokens)


class _LinearLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target_ids: Tensor,
        temperature: float,
        with_entropy: bool,
        chunk_tokens: int,
    ) -> tuple[Tensor, Tensor | None]:
        logprobs = hidden.new_empty(len(hidden), dtype=_accumulator(hidden))
        lse = torch.empty_like(logprobs)
        entropy = torch.empty_like(logprobs) if with_entropy else None
        for rows in _chunks(len(hidden), chunk_tokens):
            logits = _scaled_logits(hidden[rows], weight, bias, temperature)
            lse[rows] = torch.logsumexp(logits, dim=-1)
            logprobs[rows] = logits.gather(1, target_ids[rows, None]).squeeze(1) - lse[rows]
            if entropy is not None:
                log_probs = logits.sub_(lse[rows, None])
                # A batched product of a row and a column: the elementwise one would be another chunk of logits.
                entropy[rows] = -torch.bmm(log_probs.exp()[:, None], log_probs[..., None]).flatten()
                del log_probs
            del logits  # before the next chunk's are made
        ctx.save_for_backward(hidden, weight, bias, target_ids, lse, entropy)
        ctx.set_materialize_grads(False)
        ctx.temperature, ctx.chunk_tokens = temperature, chunk_tokens
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_logprobs, grad_entropy = grads  # None for an output that the loss does not use
        hidden, weight, bias, target_ids, lse, entropy = ctx.saved_tensors
        if grad_logprobs is None:
            grad_logprobs = torch.zeros_like(lse)
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        # The sum over chunks is kept in the accumulator's dtype: rounding it to bfloat16 at every chunk loses the
        # small terms.
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=lse.dtype) if need_weight else None
        grad_bias = torch.zeros_like(bias, dtype=lse.dtype) if need_bias else None
        for rows in _chunks(len(hidden), ctx.chunk_tokens):
            log_probs = _scaled_logits(hidden[rows], weight, bias, ctx.temperature).sub_(lse[rows, None])
            # d logprob_i / d logit_j = [i = j] - p_j;  d entropy / d logit_j = -p_j (log p_j + entropy)
            if entropy is None or grad_entropy is None:
                grad_logits = log_probs.exp_().mul_(-grad_logprobs[rows, None])
            else:
                grad_logits = log_probs.exp()
                log_probs.add_(entropy[rows, None]).mul_(grad_entropy[rows, None]).add_(grad_logprobs[rows, None])
                grad_logits.mul_(log_probs).neg_()
            del log_probs
            grad_logits.scatter_add_(1, target_ids[rows, None], grad_logprobs[rows, None])
            grad_logits.div_(ctx.temperature)
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0)
            grad_logits = grad_logits.to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = grad_logits @ weight
            if grad_weight is not None:
                grad_weight += _accumulated(grad_logits.T, hidden[rows])
            del grad_logits
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            None,
            None,
            None,
            None,
        )


def _accumulator(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def linear_logits(
    hidden: Tensor,  # [T, D]
    weight: Tensor,  # [V, D]
    bias: Tensor | None = None,  # [V]
) -> Tensor:  # [T, V] float32, or float64 for float64 inputs
    """Logits as the matmul accumulated them, a fresh tensor: rounded to bfloat16 they would be off by up to 0.08."""
    logits = _accumulated(hidden, weight.T)
    if bias is not None:
        logits += bias
    return logits


def _accumulated(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` as the matmul accumulated it."""
    if a.is_cuda and a.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(a, b, out_dtype=torch.float32)
    # A bfloat16 matmul on CPU returns rounded sums, so it is done on float32 copies there.
    dtype = _accumulator(a)
    return a.to(dtype) @ b.to(dtype)


def _scaled_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    logits = linear_logits(hidden, weight, bias)
    return logits if temperature == 1.0 else logits.div_(temperature)


def _chunks(num_rows: int, chunk: int) -> Iterator[slice]:
    for start in range(0, num_rows, chunk):
        yield slice(start, min(start + chunk, num_rows))
