"""The LM head's matmul with the softmax's statistics taken from its float32 accumulators, tile by tile.

What is stored of a logit, if anything, is its exponential relative to the highest of its row's tile, in 16 bits: with
the exact statistics that gives the gradient at the precision of its own 16 bits, where a stored 16-bit logit loses
more.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgrpo_kernels.gpu.rows import LOWEST, expm1
from fastgrpo_kernels.primitives import LogitTransform, RowStats


class TileShape(NamedTuple):
    """Shape of a tile of the matmul, how many row tiles share a pass over the weight (``group``), and the launch."""

    rows: int = 128
    vocabulary: int = 256
    width: int = 64
    group: int = 8
    num_warps: int = 8
    num_stages: int = 3


class TileStats(NamedTuple):
    """Statistics of each row in each tile of the vocabulary, in float32."""

    top: Tensor  # [tiles, R] highest logit
    total: Tensor  # [tiles, R] sum of exp(logit - top)
    weighted: Tensor | None  # [tiles, R] sum of (logit - top) * exp(logit - top), for the entropy
    target: Tensor  # [R] the target's logit


def linear_tiles(
    hidden: Tensor,  # [R, D]
    weight: Tensor,  # [V, D]
    bias: Tensor | None,  # [V]
    target_ids: Tensor,  # [R] int64
    transform: LogitTransform,
    entropy: bool,
    scaled: Tensor | None,  # [R, V] takes exp(logit - top); None: no logits in any form
    shape: TileShape,
) -> TileStats:
    """Statistics of the logits, and the scaled exponentials if they are wanted, by one matmul.

    Without a softcap, whose derivative is not a function of the exponential alone.
    """
    assert not transform.softcap
    num_rows, vocabulary = len(hidden), len(weight)
    num_tiles = triton.cdiv(vocabulary, shape.vocabulary)
    new = hidden.new_empty(num_tiles, num_rows, dtype=torch.float32)
    stats = TileStats(
        new, torch.empty_like(new), torch.empty_like(new) if entropy else None, torch.full_like(new[0], float("nan"))
    )
    scale, scales = transform.inverse()
    _linear_tiles[(triton.cdiv(num_rows, shape.rows) * num_tiles,)](
        hidden, weight, bias, target_ids, scales, scaled, *stats, num_rows, vocabulary, hidden.shape[1],
        hidden.stride(0), weight.stride(0), 0 if scaled is None else scaled.stride(0), scale,
        PER_ROW=scales is not None, EVEN_WIDTH=hidden.shape[1] % shape.width == 0, BLOCK_R=shape.rows,
        BLOCK_V=shape.vocabulary, BLOCK_D=shape.width, GROUP=shape.group,
        num_warps=shape.num_warps, num_stages=shape.num_stages,
    )  # fmt: skip
    return stats


def combine_tiles(tiles: TileStats) -> RowStats:
    """Statistics of whole rows."""
    num_tiles, num_rows = tiles.top.shape
    logprobs, lse = torch.empty_like(tiles.target), torch.empty_like(tiles.target)
    entropy = None if tiles.weighted is None else torch.empty_like(lse)
    block_rows = 32
    _combine_tiles[(triton.cdiv(num_rows, block_rows),)](
        *tiles, logprobs, lse, entropy, num_rows, num_tiles, BLOCK_R=block_rows, BLOCK_TILES=64
    )
    return RowStats(logprobs, lse, entropy)


def tile_gradient(
    scaled: Tensor,  # [R, V] as `linear_tiles` left it; becomes the gradient of the bare logits
    tiles: TileStats,
    target_ids: Tensor,  # [R]
    transform: LogitTransform,
    stats: RowStats,
    grad_logprobs: Tensor,  # [R]
    shape: TileShape,
) -> None:
    """Turns the scaled exponentials into the gradient of the logits, in place."""
    num_rows, vocabulary = scaled.shape
    scale, scales = transform.inverse()
    block_rows = 8
    _tile_gradient[(triton.cdiv(num_rows, block_rows) * triton.cdiv(vocabulary, shape.vocabulary),)](
        scaled, tiles.top, target_ids, scales, stats.logprobs, stats.lse, grad_logprobs, num_rows, vocabulary,
        scaled.stride(0), scale, PER_ROW=scales is not None, BLOCK_R=block_rows, BLOCK_V=shape.vocabulary,
    )  # fmt: skip


@triton.jit
def _linear_tiles(
    hidden,  # [R, D]
    weight,  # [V, D]
    bias,  # [V] or None
    target_ids,  # [R]
    inverse_temperatures,  # [R] or None
    scaled,  # [R, V] or None
    tops,  # [tiles, R]
    totals,  # [tiles, R]
    weighteds,  # [tiles, R] or None
    targets,  # [R]
    num_rows,
    vocabulary,
    width,
    hidden_stride,
    weight_stride,
    scaled_stride,
    inverse_temperature,
    PER_ROW: tl.constexpr,
    EVEN_WIDTH: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
):
    # Within a group of row tiles the rows run fast, so that a tile of the weight is read once for all of them.
    program = tl.program_id(0)
    num_row_tiles = tl.cdiv(num_rows, BLOCK_R)
    per_group = GROUP * tl.cdiv(vocabulary, BLOCK_V)
    first = (program // per_group) * GROUP
    group = tl.minimum(num_row_tiles - first, GROUP)
    row_tile = first + (program % per_group) % group
    tile = (program % per_group) // group

    rows = row_tile * BLOCK_R + tl.arange(0, BLOCK_R)
    columns = tile * BLOCK_V + tl.arange(0, BLOCK_V)
    row_inside, column_inside = rows < num_rows, columns < vocabulary
    # Rows beyond the end read the last one again: no mask in the loop.
    hidden_rows = hidden + tl.minimum(rows, num_rows - 1).to(tl.int64)[:, None] * hidden_stride
    weight_rows = weight + tl.minimum(columns, vocabulary - 1).to(tl.int64)[None, :] * weight_stride
    logits = tl.zeros([BLOCK_R, BLOCK_V], tl.float32)
    for start in range(0, width, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        if EVEN_WIDTH:
            a = tl.load(hidden_rows + d[None, :])
            b = tl.load(weight_rows + d[:, None])
        else:
            a = tl.load(hidden_rows + d[None, :], mask=d[None, :] < width, other=0.0)
            b = tl.load(weight_rows + d[:, None], mask=d[:, None] < width, other=0.0)
        logits = tl.dot(a, b, logits, input_precision="ieee")
    if bias is not None:
        logits += tl.load(bias + columns, mask=column_inside, other=0.0).to(tl.float32)[None, :]
    if PER_ROW:
        logits *= tl.load(inverse_temperatures + rows, mask=row_inside, other=1.0)[:, None]
    else:
        logits *= inverse_temperature

    target = tl.load(target_ids + rows, mask=row_inside, other=-1)
    here = row_inside & (target >= tile * BLOCK_V) & (target < tile * BLOCK_V + BLOCK_V) & (target < vocabulary)
    of_target = tl.sum(tl.where(columns[None, :] == target[:, None], logits, 0.0), 1)
    tl.store(targets + rows, of_target, mask=here)

    logits = tl.where(column_inside[None, :], logits, LOWEST)
    top = tl.maximum(tl.max(logits, 1), LOWEST)
    logits -= top[:, None]
    logits = tl.where(logits < LOWEST, LOWEST, logits)  # finite, so that times an exponential of 0 it is 0; NaN stays
    at = tile.to(tl.int64) * num_rows + rows
    tl.store(tops + at, top, mask=row_inside)
    e = tl.exp(logits)
    if weighteds is not None:
        tl.store(weighteds + at, tl.sum(e * logits, 1), mask=row_inside)
    tl.store(totals + at, tl.sum(e, 1), mask=row_inside)
    if scaled is not None:
        # A tile's own offsets fit into 32 bits: half the registers.
        corner = scaled + row_tile.to(tl.int64) * BLOCK_R * scaled_stride + tile * BLOCK_V
        offsets = tl.arange(0, BLOCK_R)[:, None] * scaled_stride + tl.arange(0, BLOCK_V)[None, :]
        tl.store(corner + offsets, e.to(scaled.dtype.element_ty), mask=row_inside[:, None] & column_inside[None, :])


@triton.jit
def _combine_tiles(
    tops,  # [tiles, R]
    totals,  # [tiles, R]
    weighteds,  # [tiles, R] or None
    targets,  # [R]
    logprobs,  # [R]
    lse,  # [R]
    entropy,  # [R] or None
    num_rows,
    num_tiles,
    BLOCK_R: tl.constexpr,
    BLOCK_TILES: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = rows < num_rows
    top = tl.full([BLOCK_R], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_R], tl.float32)
    weighted = tl.zeros([BLOCK_R], tl.float32)
    for start in range(0, num_tiles, BLOCK_TILES):
        tiles = start + tl.arange(0, BLOCK_TILES)
        at = tiles.to(tl.int64)[:, None] * num_rows + rows[None, :]
        there = (tiles < num_tiles)[:, None] & inside[None, :]
        tile_top = tl.load(tops + at, mask=there, other=LOWEST)
        tile_total = tl.load(totals + at, mask=there, other=0.0)
        new_top = tl.maximum(top, tl.max(tile_top, 0))
        fall, tile_fall = top - new_top, tile_top - new_top[None, :]
        shrink, tile_shrink = tl.exp(fall), tl.exp(tile_fall)
        if weighteds is not None:
            tile_weighted = tl.load(weighteds + at, mask=there, other=0.0)
            rescaled = tl.where(tile_shrink > 0, (tile_weighted + tile_total * tile_fall) * tile_shrink, 0.0)
            weighted = tl.where(shrink > 0, (weighted + total * fall) * shrink, 0.0) + tl.sum(rescaled, 0)
        total = total * shrink + tl.sum(tile_total * tile_shrink, 0)
        top = new_top
    log_total = tl.log(total)
    target = tl.load(targets + rows, mask=inside, other=0.0)
    tl.store(lse + rows, top + log_total, mask=inside)
    tl.store(logprobs + rows, (target - top) - log_total, mask=inside)
    if entropy is not None:
        tl.store(entropy + rows, log_total - weighted / total, mask=inside)


@triton.jit
def _tile_gradient(
    scaled,  # [R, V]
    tops,  # [tiles, R]
    target_ids,  # [R]
    inverse_temperatures,  # [R] or None
    logprobs,  # [R]
    lse,  # [R]
    grad_logprobs,  # [R]
    num_rows,
    vocabulary,
    scaled_stride,
    inverse_temperature,
    PER_ROW: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    num_tiles = tl.cdiv(vocabulary, BLOCK_V)
    program = tl.program_id(0)
    tile = program % num_tiles
    rows = (program // num_tiles) * BLOCK_R + tl.arange(0, BLOCK_R)
    columns = tile * BLOCK_V + tl.arange(0, BLOCK_V)
    inside = rows < num_rows
    g = tl.load(grad_logprobs + rows, mask=inside, other=0.0)
    if PER_ROW:
        slope = g * tl.load(inverse_temperatures + rows, mask=inside, other=0.0)
    else:
        slope = g * inverse_temperature
    top = tl.load(tops + tile.to(tl.int64) * num_rows + rows, mask=inside, other=0.0)
    factor = slope * tl.exp(top - tl.load(lse + rows, mask=inside, other=0.0))
    at_target = -slope * expm1(tl.load(logprobs + rows, mask=inside, other=0.0))  # 1 - p without cancellation
    target = tl.load(target_ids + rows, mask=inside, other=-1)
    at = scaled + rows.to(tl.int64)[:, None] * scaled_stride + columns[None, :]
    there = inside[:, None] & (columns < vocabulary)[None, :]
    d = -factor[:, None] * tl.load(at, mask=there, other=0.0).to(tl.float32)
    d = tl.where(columns[None, :] == target[:, None], at_target[:, None], d)
    d = tl.where((g == 0)[:, None], 0.0, d)  # whatever the logits are
    tl.store(at, d.to(scaled.dtype.element_ty), mask=there)
