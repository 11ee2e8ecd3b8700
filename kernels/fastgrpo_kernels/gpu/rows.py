"""The row passes over a chunk of logits: one program a row."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..primitives import ExponentialSums, LogitTransform, RowStats

# Below every finite logit, and its differences are finite: no -inf minus -inf in a running maximum.
LOWEST = tl.constexpr(-1.0e30)


def row_stats(logits: Tensor, target_ids: Tensor, transform: LogitTransform, entropy: bool) -> RowStats:
    require_single(logits)
    logprobs, lse = (logits.new_empty(len(logits), dtype=torch.float32) for _ in range(2))
    entropies = torch.empty_like(lse) if entropy else None
    if len(logits):
        scale, scales = transform.inverse()
        _row_stats[(len(logits),)](
            logits, target_ids, scales, logprobs, lse, entropies, logits.stride(0), logits.shape[1], scale,
            transform.softcap, PER_ROW=scales is not None, SOFTCAP=transform.softcap != 0, ENTROPY=entropy,
            **_launch(logits),
        )  # fmt: skip
    return RowStats(logprobs, lse, entropies)


def row_gradient(
    logits: Tensor,
    target_ids: Tensor,
    transform: LogitTransform,
    stats: RowStats,
    grad_logprobs: Tensor,
    grad_entropy: Tensor | None,
    out: Tensor,
) -> None:
    require_single(logits)
    if not len(logits):
        return
    scale, scales = transform.inverse()
    _row_gradient[(len(logits),)](
        logits, target_ids, scales, *stats, grad_logprobs, grad_entropy, out, logits.stride(0), out.stride(0),
        logits.shape[1], scale, transform.softcap, PER_ROW=scales is not None, SOFTCAP=transform.softcap != 0,
        ENTROPY=grad_entropy is not None, NARROW=out.dtype != logits.dtype and out.data_ptr() == logits.data_ptr(),
        **_launch(logits),
    )  # fmt: skip


def exponentials(
    logits: Tensor,
    first: int,
    target_ids: Tensor,
    transform: LogitTransform,
    offsets: Tensor,
    sums: ExponentialSums,
    out: Tensor,
) -> None:
    require_single(logits)
    if not len(logits):
        return
    scale, scales = transform.inverse()
    _exponentials[(len(logits),)](
        logits, first, target_ids, scales, offsets, *sums, out, logits.stride(0), out.stride(0), logits.shape[1],
        scale, PER_ROW=scales is not None, NARROW=out.dtype != logits.dtype and out.data_ptr() == logits.data_ptr(),
        **_launch(logits),
    )  # fmt: skip


def require_single(tensor: Tensor) -> None:
    if tensor.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise ValueError(f"on CUDA the ops take 16- and 32-bit floats, got {tensor.dtype}: check in float64 on a CPU")


def _launch(logits: Tensor) -> dict[str, int]:
    block = min(4096, triton.next_power_of_2(logits.shape[1]))
    return {"BLOCK_V": block, "num_warps": 8 if block >= 2048 else 4}


@triton.jit
def _transformed(x, scale, softcap, SOFTCAP: tl.constexpr):
    """The logit as the softmax sees it, and its derivative to the bare one."""
    slope = tl.zeros_like(x) + scale  # not x * 0, which is NaN for a forbidden token's -inf
    if SOFTCAP:
        tanh = 2.0 * tl.sigmoid(2.0 * x / softcap) - 1.0
        x = softcap * tanh
        slope *= 1.0 - tanh * tanh
    return x * scale, slope


@triton.jit
def expm1(x):
    """exp(x) - 1 without the cancellation near 0."""
    series = x + x * x * (0.5 + x * (1.0 / 6.0 + x * (1.0 / 24.0 + x * (1.0 / 120.0))))
    return tl.where(tl.abs(x) < 0.125, series, tl.exp(x) - 1.0)


@triton.jit
def _row_stats(
    logits,  # [R, V]
    target_ids,  # [R]
    inverse_temperatures,  # [R] or None
    logprobs,  # [R]
    lse,  # [R]
    entropy,  # [R] or None
    row_stride,
    vocabulary,
    inverse_temperature,
    softcap,
    PER_ROW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    ENTROPY: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride
    scale = inverse_temperature
    if PER_ROW:
        scale = tl.load(inverse_temperatures + row)
    # A running maximum and sums in every lane: lanes meet once, after the row.
    top = tl.full([BLOCK_V], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_V], tl.float32)  # of exp(x - top)
    weighted = tl.zeros([BLOCK_V], tl.float32)  # of (x - top) * exp(x - top)
    for start in range(0, vocabulary, BLOCK_V):
        columns = start + tl.arange(0, BLOCK_V)
        bare = tl.load(logits + columns, mask=columns < vocabulary, other=-float("inf")).to(tl.float32)
        x, _ = _transformed(bare, scale, softcap, SOFTCAP)
        x = tl.where(columns < vocabulary, x, -float("inf"))
        new_top = tl.maximum(top, x)
        fall = top - new_top
        shrink = tl.exp(fall)
        e = tl.exp(x - new_top)
        if ENTROPY:
            weighted = (weighted + total * fall) * shrink + tl.where(e > 0, e * (x - new_top), 0.0)
        total = total * shrink + e
        top = new_top
    highest = tl.max(top, 0)
    fall = top - highest
    shrink = tl.exp(fall)
    row_total = tl.sum(total * shrink, 0)
    log_total = tl.log(row_total)
    target = tl.load(target_ids + row)
    known = (target >= 0) & (target < vocabulary)
    bare = tl.load(logits + target, mask=known, other=float("nan")).to(tl.float32)  # an id that is none gives NaN
    x, _ = _transformed(bare, scale, softcap, SOFTCAP)
    tl.store(lse + row, highest + log_total)
    tl.store(logprobs + row, (x - highest) - log_total)
    if ENTROPY:
        row_weighted = tl.sum((weighted + total * fall) * shrink, 0)
        tl.store(entropy + row, log_total - row_weighted / row_total)


@triton.jit
def _row_gradient(
    logits,  # [R, V]
    target_ids,  # [R]
    inverse_temperatures,  # [R] or None
    logprobs,  # [R]
    lse,  # [R]
    entropy,  # [R] or None
    grad_logprobs,  # [R]
    grad_entropy,  # [R] or None
    out,  # [R, V], may be the logits, or lie in the first half of each of their rows
    row_stride,
    out_stride,
    vocabulary,
    inverse_temperature,
    softcap,
    PER_ROW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    ENTROPY: tl.constexpr,
    NARROW: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """By d logprob / d logit_j = [j = target] - p_j and d entropy / d logit_j = -p_j (log p_j + entropy)."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride
    out += row * out_stride
    scale = inverse_temperature
    if PER_ROW:
        scale = tl.load(inverse_temperatures + row)
    target = tl.load(target_ids + row)
    row_lse = tl.load(lse + row)
    logprob = tl.load(logprobs + row)
    g = tl.load(grad_logprobs + row)
    at_target = -g * expm1(logprob)  # 1 - p without cancellation
    unused = g == 0
    h = 0.0
    row_entropy = 0.0
    if ENTROPY:
        h = tl.load(grad_entropy + row)
        row_entropy = tl.load(entropy + row)
        at_target -= h * tl.exp(logprob) * (logprob + row_entropy)
        unused = unused & (h == 0)
    for start in range(0, vocabulary, BLOCK_V):
        columns = start + tl.arange(0, BLOCK_V)
        inside = columns < vocabulary
        bare = tl.load(logits + columns, mask=inside, other=0.0).to(tl.float32)
        if NARROW:
            # Stores of this block fall on logits of this block and earlier ones: every thread must have read them.
            tl.debug_barrier()
        x, slope = _transformed(bare, scale, softcap, SOFTCAP)
        log_p = x - row_lse
        p = tl.exp(log_p)
        d = -g * p
        if ENTROPY:
            d -= tl.where(p > 0, h * p * (log_p + row_entropy), 0.0)
        d = tl.where(columns == target, at_target, d) * slope
        d = tl.where(unused, 0.0, d)  # whatever the logits are
        tl.store(out + columns, d.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _exponentials(
    logits,  # [R, C]
    first,
    target_ids,  # [R]
    inverse_temperatures,  # [R] or None
    offsets,  # [R]
    totals,  # [R] float64, as the next two
    weighteds,  # [R] or None
    targets,  # [R]
    out,  # [R, C], may be the logits, or lie in the first half of each of their rows
    row_stride,
    out_stride,
    vocabulary,
    inverse_temperature,
    PER_ROW: tl.constexpr,
    NARROW: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride
    out += row * out_stride
    scale = inverse_temperature
    if PER_ROW:
        scale = tl.load(inverse_temperatures + row)
    offset = tl.load(offsets + row)
    target = tl.load(target_ids + row) - first
    # Before a store can fall on it: in the first half of the row lies what was stored.
    here = (target >= 0) & (target < vocabulary)
    of_target = tl.load(logits + target, mask=here, other=0.0).to(tl.float32) * scale - offset
    tl.store(targets + row, of_target.to(tl.float64), mask=here)
    total = tl.zeros([BLOCK_V], tl.float32)
    weighted = tl.zeros([BLOCK_V], tl.float32)
    for start in range(0, vocabulary, BLOCK_V):
        columns = start + tl.arange(0, BLOCK_V)
        inside = columns < vocabulary
        bare = tl.load(logits + columns, mask=inside, other=-float("inf")).to(tl.float32)
        # Stores of this block fall on logits of this block and earlier ones: every thread must have read them.
        if NARROW:
            tl.debug_barrier()
        x = bare * scale - offset
        e = tl.exp(x)
        total += e
        if weighteds is not None:
            weighted += tl.where(e > 0, e * x, 0.0)
        tl.store(out + columns, e.to(out.dtype.element_ty), mask=inside)
    tl.store(totals + row, tl.load(totals + row) + tl.sum(total, 0))
    if weighteds is not None:
        tl.store(weighteds + row, tl.load(weighteds + row) + tl.sum(weighted, 0))
