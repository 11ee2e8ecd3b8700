"""The LM head's matmul whose epilogue turns logits into exponentials, and sums them, in its float32 accumulators.

What is stored of a logit, if anything, is its exponential relative to an offset of its row, in 16 bits. With the exact
sum of a row that gives the gradient at the precision of its own 16 bits, where a stored 16-bit logit loses more.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgrpo_kernels.gpu.rows import LOWEST
from fastgrpo_kernels.primitives import ExponentialSums, LogitTransform

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = 0.6931471805599453


class TileShape(NamedTuple):
    """Shape of a tile of the matmul, how many row tiles share a pass over the weight (``group``), and the launch."""

    rows: int = 128
    vocabulary: int = 256
    width: int = 64
    group: int = 32
    num_warps: int = 8
    num_stages: int = 3


def linear_tiles(
    hidden: Tensor,  # [R, D]
    weight: Tensor,  # [V, D]
    bias: Tensor | None,  # [V]
    target_ids: Tensor,  # [R] int64
    transform: LogitTransform,
    offsets: Tensor,  # [R] float32
    entropy: bool,
    out: Tensor | None,  # [R, V] takes exp(x - offset); None: no logits in any form
    shape: TileShape,
) -> ExponentialSums:
    """Sums of the exponentials, and these themselves if they are wanted, by one matmul.

    Without a softcap, whose derivative is not a function of the exponential alone.
    """
    assert not transform.softcap
    num_rows, vocabulary = len(hidden), len(weight)
    num_tiles = triton.cdiv(vocabulary, shape.vocabulary)
    totals = hidden.new_empty(num_tiles, num_rows, dtype=torch.float32)
    weighteds = torch.empty_like(totals) if entropy else None
    targets = torch.full_like(offsets, float("nan"))
    scale, scales = transform.inverse()
    _linear_tiles[(triton.cdiv(num_rows, shape.rows) * num_tiles,)](
        hidden, weight, bias, target_ids, scales, offsets, out, totals, weighteds, targets, num_rows, vocabulary,
        hidden.shape[1], hidden.stride(0), weight.stride(0), 0 if out is None else out.stride(0), scale,
        PER_ROW=scales is not None, EVEN_WIDTH=hidden.shape[1] % shape.width == 0,
        EVEN_VOCABULARY=vocabulary % shape.vocabulary == 0, BLOCK_R=shape.rows, BLOCK_V=shape.vocabulary,
        BLOCK_D=shape.width, GROUP=shape.group, num_warps=shape.num_warps, num_stages=shape.num_stages,
    )  # fmt: skip
    # The kernel's are in powers of two.
    weighted = None if weighteds is None else weighteds.sum(0, dtype=torch.float64) * LN_2
    return ExponentialSums(totals.sum(0, dtype=torch.float64), weighted, targets.double() * LN_2)


@triton.jit
def product_of_tile(
    hidden,  # [R, D]
    weight,  # [V, D]
    bias,  # [V] or None
    rows,  # [BLOCK_R]
    columns,  # [BLOCK_V]
    num_rows,
    vocabulary,
    width,
    hidden_stride,
    weight_stride,
    EVEN_WIDTH: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The bare logits of a tile in float32. Rows and columns beyond the end are the last ones: no mask in the loop."""
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
        logits += tl.load(bias + columns, mask=columns < vocabulary, other=0.0).to(tl.float32)[None, :]
    return logits


@triton.jit
def _linear_tiles(
    hidden,  # [R, D]
    weight,  # [V, D]
    bias,  # [V] or None
    target_ids,  # [R]
    inverse_temperatures,  # [R] or None
    offsets,  # [R]
    out,  # [R, V] or None
    totals,  # [tiles, R]
    weighteds,  # [tiles, R] or None
    targets,  # [R]
    num_rows,
    vocabulary,
    width,
    hidden_stride,
    weight_stride,
    out_stride,
    inverse_temperature,
    PER_ROW: tl.constexpr,
    EVEN_WIDTH: tl.constexpr,
    EVEN_VOCABULARY: tl.constexpr,
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
    row_inside = rows < num_rows
    logits = product_of_tile(
        hidden, weight, bias, rows, columns, num_rows, vocabulary, width, hidden_stride, weight_stride, EVEN_WIDTH,
        BLOCK_R, BLOCK_V, BLOCK_D,
    )  # fmt: skip

    # One multiplication and addition turns a logit into the power of two that its exponential is.
    offset = tl.load(offsets + rows, mask=row_inside, other=0.0) * LOG2_E
    if PER_ROW:
        scale = tl.load(inverse_temperatures + rows, mask=row_inside, other=1.0) * LOG2_E
        power = logits * scale[:, None] - offset[:, None]
    else:
        power = logits * (inverse_temperature * LOG2_E) - offset[:, None]

    target = tl.load(target_ids + rows, mask=row_inside, other=-1).to(tl.int32) - tile * BLOCK_V
    here = (target >= 0) & (target < tl.minimum(vocabulary - tile * BLOCK_V, BLOCK_V))
    if tl.max(here.to(tl.int32), 0) > 0:  # in one tile of 600
        at_target = tl.where(tl.arange(0, BLOCK_V)[None, :] == target[:, None], power, 0.0)
        tl.store(targets + rows, tl.sum(at_target, 1), mask=here)

    if not EVEN_VOCABULARY:  # noqa: SIM102 (one is known when this is compiled, the other when it runs)
        if (tile + 1) * BLOCK_V > vocabulary:  # in the last tile alone
            power = tl.where((columns < vocabulary)[None, :], power, -float("inf"))
    if weighteds is not None:  # finite, so that times an exponential of 0 it is 0; NaN stays
        power = tl.maximum(power, LOWEST, propagate_nan=tl.PropagateNan.ALL)
    e = tl.exp2(power)
    at = tile.to(tl.int64) * num_rows + rows
    tl.store(totals + at, tl.sum(e, 1), mask=row_inside)
    if weighteds is not None:
        tl.store(weighteds + at, tl.sum(e * power, 1), mask=row_inside)
    if out is not None:
        # A tile's own offsets fit into 32 bits: half the registers.
        corner = out + row_tile.to(tl.int64) * BLOCK_R * out_stride + tile * BLOCK_V
        inside = row_inside[:, None] & (columns < vocabulary)[None, :]
        within = tl.arange(0, BLOCK_R)[:, None] * out_stride + tl.arange(0, BLOCK_V)[None, :]
        tl.store(corner + within, e.to(out.dtype.element_ty), mask=inside)
