"""The primitives in C++ (csrc/), for CPU tensors."""

from pathlib import Path

import torch
from torch import Tensor

from ._ops import add_op_namespace_prefix
from .objective import METRICS, Objective
from .primitives import (
    DecodeStep,
    ExponentialSums,
    LogitTransform,
    RowStats,
    TokenFields,
    TokenGradient,
    statistics_dtype,
)

LIBRARY = Path(__file__).parent / "_native.so"
if LIBRARY.exists():
    torch.ops.load_library(str(LIBRARY))
# The namespace that the library was built with: csrc/CMakeLists.txt.
_ops = getattr(torch.ops, add_op_namespace_prefix("").removesuffix("::") + "_native")


def row_stats(logits: Tensor, target_ids: Tensor, transform: LogitTransform, entropy: bool) -> RowStats:
    logprobs, lse, entropies = torch.empty(3, len(logits), dtype=statistics_dtype(logits.dtype))
    stats = RowStats(logprobs, lse, entropies if entropy else None)
    inverse, inverses = transform.inverse()
    _ops.row_stats(logits, target_ids, inverse, inverses, transform.softcap, *stats)
    return stats


def row_gradient(
    logits: Tensor,
    target_ids: Tensor,
    transform: LogitTransform,
    stats: RowStats,
    grad_logprobs: Tensor,
    grad_entropy: Tensor | None,
    out: Tensor,
) -> None:
    inverse, inverses = transform.inverse()
    _ops.row_gradient(
        logits, target_ids, inverse, inverses, transform.softcap, *stats, grad_logprobs, grad_entropy, out
    )


def exponentials(
    logits: Tensor,
    first: int,
    target_ids: Tensor,
    transform: LogitTransform,
    offsets: Tensor,
    sums: ExponentialSums,
    out: Tensor,
) -> None:
    assert out.data_ptr() == logits.data_ptr()
    inverse, inverses = transform.inverse()
    _ops.exponentials(logits, first, target_ids, inverse, inverses, offsets, *sums)


def token_objective(
    logprobs: Tensor, entropy: Tensor | None, fields: TokenFields, num_loss_tokens: Tensor, objective: Objective
) -> TokenGradient:
    grad_logprobs, ratio = torch.empty_like(logprobs), torch.empty_like(logprobs)
    grad_entropy = torch.empty_like(ratio) if objective.entropy_coef else None
    sums = torch.empty(1 + len(METRICS), dtype=torch.float64)
    constants = torch.tensor(objective.encode(), dtype=torch.float64)
    *of_tokens, cu_seqlens = fields  # in the order of library.cpp
    _ops.token_objective(
        logprobs, *of_tokens, entropy, cu_seqlens, float(num_loss_tokens), constants, grad_logprobs, grad_entropy,
        ratio, sums,
    )  # fmt: skip
    loss, metrics = sums[0].to(ratio.dtype, copy=True), sums[1:].clone()  # outputs of an op may not share memory
    return TokenGradient(loss, grad_logprobs, grad_entropy, ratio, metrics)


def group_advantages(
    rewards: Tensor, cu_groups: Tensor | None, group_size: int, leave_one_out: bool, scale: bool, eps: float
) -> Tensor:
    advantages = torch.empty_like(rewards)
    _ops.group_advantages(rewards, cu_groups, group_size, leave_one_out, scale, eps, advantages)
    return advantages


def decode_attention(step: DecodeStep, scale: float, window: int | None) -> Tensor:
    out = step.query.new_empty(*step.query.shape[:2], step.values.shape[-1])
    _ops.decode_attention(*step, scale, window or 0, out)
    return out
