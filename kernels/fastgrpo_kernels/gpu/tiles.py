"""The LM head's matmul whose epilogue turns logits into exponentials, and sums them, in its float32 accumulators.

What is stored of a logit, if anything, is its exponential relative to an offset of its row, in 16 bits. With the exact
sum of a row that gives the gradient at the precision of its own 16 bits, where a stored 16-bit logit loses more.
"""

from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ..primitives import ExponentialSums, LogitTransform
from .rows import LOWEST

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = 0.6931471805599453


class TileShape(NamedTuple):
    """Shape of a tile of the matmul, how many row tiles share a pass over the weight (``group``), and the launch.

    ``persistent``: one program a multiprocessor goes from tile to tile, loads and stores by tensor descriptors (TMA,
    from sm_90 on), and loads the next tile while it finishes one. No GPU has measured it yet: it is not the default.
    """

    rows: int = 128
    vocabulary: int = 256
    width: int = 64
    group: int = 32
    num_warps: int = 8
    num_stages: int = 3
    persistent: bool = False


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
    (num_rows, width), vocabulary = hidden.shape, len(weight)
    num_tiles = triton.cdiv(vocabulary, shape.vocabulary)
    totals = hidden.new_empty(num_tiles, num_rows, dtype=torch.float32)
    weighteds = torch.empty_like(totals) if entropy else None
    targets = torch.full_like(offsets, float("nan"))
    scale, scales = transform.inverse()
    of_rows = (
        bias,
        target_ids,
        scales,
        offsets,
        totals,
        weighteds,
        targets,
        num_rows,
        vocabulary,
        width,
        scale,
    )
    options = {
        "PER_ROW": scales is not None, "EVEN_VOCABULARY": vocabulary % shape.vocabulary == 0, "BLOCK_R": shape.rows,
        "BLOCK_V": shape.vocabulary, "BLOCK_D": shape.width, "GROUP": shape.group, "num_warps": shape.num_warps,
        "num_stages": shape.num_stages,
    }  # fmt: skip
    count = triton.cdiv(num_rows, shape.rows) * num_tiles
    if shape.persistent and _have_descriptors(hidden, weight, out):
        programs = min(count, _num_multiprocessors(hidden.device))
        _persistent_tiles[(programs,)](
            *_descriptors(hidden, weight, out, shape), *of_rows, PROGRAMS=programs, **options
        )
    else:
        strides = hidden.stride(0), weight.stride(0), 0 if out is None else out.stride(0)
        even = width % shape.width == 0
        _linear_tiles[(count,)](hidden, weight, out, *of_rows, *strides, EVEN_WIDTH=even, **options)
    # The kernel's are in powers of two.
    weighted = None if weighteds is None else weighteds.sum(0, dtype=torch.float64) * LN_2
    return ExponentialSums(totals.sum(0, dtype=torch.float64), weighted, targets.double() * LN_2)


def _have_descriptors(*tensors: Tensor | None) -> bool:
    """Whether TMA takes these matrices: rows begin at multiples of 16 bytes, and there are some."""
    return all(
        t.numel() > 0 and t.data_ptr() % 16 == 0 and t.stride(0) * t.element_size() % 16 == 0
        for t in tensors
        if t is not None
    )


def _descriptors(hidden: Tensor, weight: Tensor, out: Tensor | None, shape: TileShape) -> list[TensorDescriptor | None]:
    blocks = [shape.rows, shape.width], [shape.vocabulary, shape.width], [shape.rows, shape.vocabulary // 2]
    return [
        None if t is None else TensorDescriptor.from_tensor(t, block)
        for t, block in zip((hidden, weight, out), blocks, strict=True)
    ]


@cache
def _num_multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 3


@triton.jit
def product_of_tile(
    hidden,  # [R, D]
    weight,  # [V, D]
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
    """The product of a tile in float32. Rows and columns beyond the end are the last ones: no mask in the loop."""
    hidden_rows = hidden + tl.minimum(rows, num_rows - 1).to(tl.int64)[:, None] * hidden_stride
    weight_rows = weight + tl.minimum(columns, vocabulary - 1).to(tl.int64)[None, :] * weight_stride
    product = tl.zeros([BLOCK_R, BLOCK_V], tl.float32)
    for start in range(0, width, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        if EVEN_WIDTH:
            a = tl.load(hidden_rows + d[None, :])
            b = tl.load(weight_rows + d[:, None])
        else:
            a = tl.load(hidden_rows + d[None, :], mask=d[None, :] < width, other=0.0)
            b = tl.load(weight_rows + d[:, None], mask=d[:, None] < width, other=0.0)
        product = tl.dot(a, b, product, input_precision="ieee")
    return product


@triton.jit
def _place(program, num_rows, vocabulary, BLOCK_R: tl.constexpr, BLOCK_V: tl.constexpr, GROUP: tl.constexpr):
    """The row tile and the vocabulary's tile of a program.

    Within a group of row tiles the rows run fast, so that a tile of the weight is read once for all of them.
    """
    num_row_tiles = tl.cdiv(num_rows, BLOCK_R)
    per_group = GROUP * tl.cdiv(vocabulary, BLOCK_V)
    first = (program // per_group) * GROUP
    group = tl.minimum(num_row_tiles - first, GROUP)
    return first + (program % per_group) % group, (program % per_group) // group


@triton.jit
def _exponentials(
    product,  # [BLOCK_R, COLUMNS]
    bias,  # [V] or None
    target_ids,  # [R]
    inverse_temperatures,  # [R] or None
    offsets,  # [R]
    targets,  # [R]
    rows,  # [BLOCK_R]
    first,  # column
    num_rows,
    vocabulary,
    inverse_temperature,
    PER_ROW: tl.constexpr,
    EVEN_VOCABULARY: tl.constexpr,
    COLUMNS: tl.constexpr,
    ENTROPY: tl.constexpr,
):
    """The exponentials, and of each row their sum and that of their products with the power of two that each is."""
    columns = first + tl.arange(0, COLUMNS)
    inside = rows < num_rows
    if bias is not None:
        product += tl.load(bias + columns, mask=columns < vocabulary, other=0.0).to(tl.float32)[None, :]
    # One multiplication and addition turns a logit into the power of two that its exponential is.
    offset = tl.load(offsets + rows, mask=inside, other=0.0) * LOG2_E
    if PER_ROW:
        scale = tl.load(inverse_temperatures + rows, mask=inside, other=1.0) * LOG2_E
        power = product * scale[:, None] - offset[:, None]
    else:
        power = product * (inverse_temperature * LOG2_E) - offset[:, None]

    target = tl.load(target_ids + rows, mask=inside, other=-1).to(tl.int32) - first
    here = (target >= 0) & (target < tl.minimum(vocabulary - first, COLUMNS))
    if tl.max(here.to(tl.int32), 0) > 0:  # in one tile of some hundreds
        at_target = tl.where(tl.arange(0, COLUMNS)[None, :] == target[:, None], power, 0.0)
        tl.store(targets + rows, tl.sum(at_target, 1), mask=here)

    if not EVEN_VOCABULARY:  # noqa: SIM102 (one is known when this is compiled, the other when it runs)
        if first + COLUMNS > vocabulary:  # in the last tile alone
            power = tl.where((columns < vocabulary)[None, :], power, -float("inf"))
    weighted = tl.zeros_like(offset)
    if ENTROPY:  # finite, so that times an exponential of 0 it is 0; NaN stays
        power = tl.maximum(power, LOWEST, propagate_nan=tl.PropagateNan.ALL)
    e = tl.exp2(power)
    if ENTROPY:
        weighted = tl.sum(e * power, 1)
    return e, tl.sum(e, 1), weighted


@triton.jit
def _linear_tiles(
    hidden,  # [R, D]
    weight,  # [V, D]
    out,  # [R, V] or None
    bias,  # [V] or None
    target_ids,  # [R]
    inverse_temperatures,  # [R] or None
    offsets,  # [R]
    totals,  # [tiles, R]
    weighteds,  # [tiles, R] or None
    targets,  # [R]
    num_rows,
    vocabulary,
    width,
    inverse_temperature,
    hidden_stride,
    weight_stride,
    out_stride,
    PER_ROW: tl.constexpr,
    EVEN_WIDTH: tl.constexpr,
    EVEN_VOCABULARY: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
):
    row_tile, tile = _place(tl.program_id(0), num_rows, vocabulary, BLOCK_R, BLOCK_V, GROUP)
    rows = row_tile * BLOCK_R + tl.arange(0, BLOCK_R)
    columns = tile * BLOCK_V + tl.arange(0, BLOCK_V)
    product = product_of_tile(
        hidden, weight, rows, columns, num_rows, vocabulary, width, hidden_stride, weight_stride, EVEN_WIDTH, BLOCK_R,
        BLOCK_V, BLOCK_D,
    )  # fmt: skip
    e, total, weighted = _exponentials(
        product, bias, target_ids, inverse_temperatures, offsets, targets, rows, tile * BLOCK_V, num_rows, vocabulary,
        inverse_temperature, PER_ROW, EVEN_VOCABULARY, BLOCK_V, weighteds is not None,
    )  # fmt: skip
    inside, at = rows < num_rows, tile.to(tl.int64) * num_rows + rows
    tl.store(totals + at, total, mask=inside)
    if weighteds is not None:
        tl.store(weighteds + at, weighted, mask=inside)
    if out is not None:
        # A tile's own offsets fit into 32 bits: half the registers.
        corner = out + row_tile.to(tl.int64) * BLOCK_R * out_stride + tile * BLOCK_V
        within = tl.arange(0, BLOCK_R)[:, None] * out_stride + tl.arange(0, BLOCK_V)[None, :]
        mask = inside[:, None] & (columns < vocabulary)[None, :]
        tl.store(corner + within, e.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _persistent_tiles(
    hidden,  # descriptor of [R, D]
    weight,  # descriptor of [V, D]
    out,  # descriptor of [R, V], or None
    bias,  # [V] or None
    target_ids,  # [R]
    inverse_temperatures,  # [R] or None
    offsets,  # [R]
    totals,  # [tiles, R]
    weighteds,  # [tiles, R] or None
    targets,  # [R]
    num_rows,
    vocabulary,
    width,
    inverse_temperature,
    PER_ROW: tl.constexpr,
    EVEN_VOCABULARY: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
    PROGRAMS: tl.constexpr,
):
    """A tile is stored in two halves, one beside the arithmetic of the next.

    A descriptor gives 0 beyond the ends of a matrix and stores nothing there.
    """
    num_tiles = tl.cdiv(num_rows, BLOCK_R) * tl.cdiv(vocabulary, BLOCK_V)
    HALF: tl.constexpr = BLOCK_V // 2  # noqa: N806
    for program in tl.range(tl.program_id(0), num_tiles, PROGRAMS, flatten=True):
        row_tile, tile = _place(program, num_rows, vocabulary, BLOCK_R, BLOCK_V, GROUP)
        rows = row_tile * BLOCK_R + tl.arange(0, BLOCK_R)
        product = tl.zeros([BLOCK_R, BLOCK_V], tl.float32)
        for start in range(0, width, BLOCK_D):
            a = hidden.load([row_tile * BLOCK_R, start])
            b = weight.load([tile * BLOCK_V, start])
            product = tl.dot(a, b.T, product, input_precision="ieee")
        left, right = tl.split(tl.permute(tl.reshape(product, [BLOCK_R, 2, HALF]), [0, 2, 1]))
        first = tile * BLOCK_V
        e, total, weighted = _exponentials(
            left, bias, target_ids, inverse_temperatures, offsets, targets, rows, first, num_rows, vocabulary,
            inverse_temperature, PER_ROW, EVEN_VOCABULARY, HALF, weighteds is not None,
        )  # fmt: skip
        if out is not None:
            out.store([row_tile * BLOCK_R, first], e.to(out.dtype))
        e, more, more_weighted = _exponentials(
            right, bias, target_ids, inverse_temperatures, offsets, targets, rows, first + HALF, num_rows, vocabulary,
            inverse_temperature, PER_ROW, EVEN_VOCABULARY, HALF, weighteds is not None,
        )  # fmt: skip
        if out is not None:
            out.store([row_tile * BLOCK_R, first + HALF], e.to(out.dtype))
        inside, at = rows < num_rows, tile.to(tl.int64) * num_rows + rows
        tl.store(totals + at, total + more, mask=inside)
        if weighteds is not None:
            tl.store(weighteds + at, weighted + more_weighted, mask=inside)
