"""Rows of the LM head computed again, exactly, which were found on the device to need it: the host waits for nothing.

Every program looks first whether one of its rows is asked for, and mostly ends there.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..primitives import LogitTransform, RowStats
from .rows import LOWEST
from .tiles import product_of_tile

_ROWS, _COLUMNS, _WIDTH = 64, 128, 32
SPLITS = 16  # programs that share the vocabulary of the same rows


def compute_again(
    hidden: Tensor,  # [R, D]
    weight: Tensor,  # [V, D]
    bias: Tensor | None,  # [V]
    target_ids: Tensor,  # [R] int64
    transform: LogitTransform,  # without a softcap
    kept: Tensor | None,  # [R, V] the rows' exponentials
    total: Tensor,  # [R] float64 their sums
    stats: RowStats,  # [R]
    window: float,
) -> None:
    """Puts the rows right whose log total is beyond the window or not a number.

    Their maximum is looked for, and what is kept becomes relative to the log-sum-exp itself, with 1 as its total.
    """
    beyond = ~(total.log().abs() <= window)
    num_rows, vocabulary = len(hidden), len(weight)
    if not num_rows:
        return
    tops = torch.empty(SPLITS, num_rows, dtype=torch.float32, device=hidden.device)
    totals, weighteds = torch.empty_like(tops), torch.empty_like(tops)
    targets = torch.full_like(tops[0], torch.nan)
    scale, scales = transform.inverse()
    blocks = blocks_of(hidden.shape[1])
    grid = (triton.cdiv(num_rows, blocks["BLOCK_R"]) * SPLITS,)
    inputs = hidden, weight, bias, target_ids, scales, beyond
    sizes = num_rows, vocabulary, hidden.shape[1], hidden.stride(0), weight.stride(0)
    options = {"PER_ROW": scales is not None, "SPLITS": SPLITS, **blocks}
    _stats_again[grid](*inputs, tops, totals, weighteds, targets, *sizes, scale, **options)
    _combine[(triton.cdiv(num_rows, 32),)](
        beyond, tops, totals, weighteds, targets, *stats, total, num_rows, BLOCK_R=32, SPLITS=SPLITS
    )
    if kept is not None:
        _store_again[grid](*inputs, stats.lse, kept, *sizes, kept.stride(0), scale, **options)


def clear(values: Tensor, rows: Tensor) -> None:  # [R, V], [R] bool
    """Fills rows with 0."""
    if len(rows):
        _clear[(len(rows),)](values, rows, values.stride(0), values.shape[1], BLOCK_V=1024)


def blocks_of(width: int) -> dict[str, int | bool]:
    return {"BLOCK_R": _ROWS, "BLOCK_V": _COLUMNS, "BLOCK_D": _WIDTH, "EVEN_WIDTH": width % _WIDTH == 0}


@triton.jit
def _transformed(product, bias, columns, vocabulary, scale):
    """The logits of a tile as the softmax sees them."""
    if bias is not None:
        product += tl.load(bias + columns, mask=columns < vocabulary, other=0.0).to(tl.float32)[None, :]
    return product * scale[:, None]


@triton.jit
def _stats_again(
    hidden,  # [R, D]
    weight,  # [V, D]
    bias,  # [V] or None
    target_ids,  # [R]
    inverse_temperatures,  # [R] or None
    asked,  # [R] bool
    tops,  # [SPLITS, R]
    totals,  # [SPLITS, R]
    weighteds,  # [SPLITS, R]
    targets,  # [R]
    num_rows,
    vocabulary,
    width,
    hidden_stride,
    weight_stride,
    inverse_temperature,
    PER_ROW: tl.constexpr,
    SPLITS: tl.constexpr,
    EVEN_WIDTH: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    split = tl.program_id(0) % SPLITS
    rows = tl.program_id(0) // SPLITS * BLOCK_R + tl.arange(0, BLOCK_R)
    wanted = tl.load(asked + rows, mask=rows < num_rows, other=0) != 0
    if tl.max(wanted.to(tl.int32), 0) == 0:
        return
    scale = tl.zeros([BLOCK_R], tl.float32) + inverse_temperature
    if PER_ROW:
        scale = tl.load(inverse_temperatures + rows, mask=wanted, other=1.0)
    target = tl.load(target_ids + rows, mask=wanted, other=-1)
    top = tl.full([BLOCK_R], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_R], tl.float32)
    weighted = tl.zeros([BLOCK_R], tl.float32)  # of (x - top) * exp(x - top)
    for start in range(split * BLOCK_V, vocabulary, SPLITS * BLOCK_V):
        columns = start + tl.arange(0, BLOCK_V)
        x = product_of_tile(
            hidden, weight, rows, columns, num_rows, vocabulary, width, hidden_stride, weight_stride, EVEN_WIDTH,
            BLOCK_R, BLOCK_V, BLOCK_D,
        )  # fmt: skip
        x = _transformed(x, bias, columns, vocabulary, scale)
        inside = (columns < vocabulary)[None, :]
        of_target = tl.sum(tl.where((columns[None, :] == target[:, None]) & inside, x, 0.0), 1)
        tl.store(targets + rows, of_target, mask=wanted & (target >= start) & (target < start + BLOCK_V))
        x = tl.where(inside, x, LOWEST)
        new_top = tl.maximum(top, tl.max(x, 1))
        fall = top - new_top
        x -= new_top[:, None]
        x = tl.where(x < LOWEST, LOWEST, x)  # finite, so that times an exponential of 0 it is 0; NaN stays
        e = tl.where(inside, tl.exp(x), 0.0)
        shrink = tl.exp(fall)
        weighted = (weighted + total * fall) * shrink + tl.sum(e * x, 1)
        total = total * shrink + tl.sum(e, 1)
        top = new_top
    at = split.to(tl.int64) * num_rows + rows
    tl.store(tops + at, top, mask=wanted)
    tl.store(totals + at, total, mask=wanted)
    tl.store(weighteds + at, weighted, mask=wanted)


@triton.jit
def _combine(
    asked,  # [R] bool
    tops,  # [SPLITS, R]
    totals,  # [SPLITS, R]
    weighteds,  # [SPLITS, R]
    targets,  # [R]
    logprobs,  # [R]
    lse,  # [R]
    entropy,  # [R] or None
    kept_totals,  # [R] float64
    num_rows,
    BLOCK_R: tl.constexpr,
    SPLITS: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    wanted = tl.load(asked + rows, mask=rows < num_rows, other=0) != 0
    if tl.max(wanted.to(tl.int32), 0) == 0:
        return
    at = tl.arange(0, SPLITS).to(tl.int64)[:, None] * num_rows + rows[None, :]
    tile_top = tl.load(tops + at, mask=wanted[None, :], other=LOWEST)
    tile_total = tl.load(totals + at, mask=wanted[None, :], other=0.0)
    tile_weighted = tl.load(weighteds + at, mask=wanted[None, :], other=0.0)
    top = tl.max(tile_top, 0)
    fall = tile_top - top[None, :]
    shrink = tl.exp(fall)
    total = tl.sum(tile_total * shrink, 0)
    weighted = tl.sum(tl.where(shrink > 0, (tile_weighted + tile_total * fall) * shrink, 0.0), 0)
    log_total = tl.log(total)
    target = tl.load(targets + rows, mask=wanted, other=0.0)
    tl.store(lse + rows, top + log_total, mask=wanted)
    tl.store(logprobs + rows, (target - top) - log_total, mask=wanted)
    if entropy is not None:
        tl.store(entropy + rows, log_total - weighted / total, mask=wanted)
    finite = tl.abs(top + log_total) < float("inf")
    tl.store(kept_totals + rows, tl.where(finite, 1.0, float("nan")).to(tl.float64), mask=wanted)


@triton.jit
def _store_again(
    hidden,  # [R, D]
    weight,  # [V, D]
    bias,  # [V] or None
    target_ids,  # [R]
    inverse_temperatures,  # [R] or None
    asked,  # [R] bool
    lse,  # [R]
    kept,  # [R, V]
    num_rows,
    vocabulary,
    width,
    hidden_stride,
    weight_stride,
    kept_stride,
    inverse_temperature,
    PER_ROW: tl.constexpr,
    SPLITS: tl.constexpr,
    EVEN_WIDTH: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    split = tl.program_id(0) % SPLITS
    rows = tl.program_id(0) // SPLITS * BLOCK_R + tl.arange(0, BLOCK_R)
    wanted = tl.load(asked + rows, mask=rows < num_rows, other=0) != 0
    if tl.max(wanted.to(tl.int32), 0) == 0:
        return
    scale = tl.zeros([BLOCK_R], tl.float32) + inverse_temperature
    if PER_ROW:
        scale = tl.load(inverse_temperatures + rows, mask=wanted, other=1.0)
    offset = tl.load(lse + rows, mask=wanted, other=0.0)
    for start in range(split * BLOCK_V, vocabulary, SPLITS * BLOCK_V):
        columns = start + tl.arange(0, BLOCK_V)
        x = product_of_tile(
            hidden, weight, rows, columns, num_rows, vocabulary, width, hidden_stride, weight_stride, EVEN_WIDTH,
            BLOCK_R, BLOCK_V, BLOCK_D,
        )  # fmt: skip
        x = _transformed(x, bias, columns, vocabulary, scale)
        e = tl.exp(x - offset[:, None])
        to = kept + rows.to(tl.int64)[:, None] * kept_stride + columns[None, :]
        tl.store(to, e.to(kept.dtype.element_ty), mask=wanted[:, None] & (columns < vocabulary)[None, :])


@triton.jit
def _clear(values, rows, stride, vocabulary, BLOCK_V: tl.constexpr):  # [R, V], [R] bool
    row = tl.program_id(0).to(tl.int64)
    if tl.load(rows + row) == 0:
        return
    for start in range(0, vocabulary, BLOCK_V):
        columns = start + tl.arange(0, BLOCK_V)
        tl.store(values + row * stride + columns, tl.zeros([BLOCK_V], values.dtype.element_ty), columns < vocabulary)
