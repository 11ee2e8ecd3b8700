"""Every Triton kernel with every switch that changes what it reads or writes, at odd shapes, and its definition."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from fastgrpo_kernels import (
    Objective,
    dispatch,
    head,
    linear_grpo,
    linear_logprobs,
    logprobs_from_logits,
    reference,
)
from fastgrpo_kernels.dispatch import primitives_for
from fastgrpo_kernels.head import LinearInputs
from fastgrpo_kernels.head.exponentials import TiledHead
from fastgrpo_kernels.primitives import ExponentialSums, LogitTransform, statistics_dtype
from torch import Tensor

from bench.launch import Launch, Outcome, normal, present, some_target_ids
from bench.token_cases import group_launches, token_launches

KERNELS = (
    "_row_stats", "_row_gradient", "_exponentials", "_linear_tiles", "_persistent_tiles",
    "_stats_again", "_combine", "_store_again", "_clear",
    "_token_objective", "_equal_groups", "_ragged_groups",
)  # fmt: skip


class Sizes(NamedTuple):
    """The sizes of the matmul's launches. The interpreter takes a millisecond for each tile, and needs float32."""

    dtypes: tuple[torch.dtype, ...]
    rows: tuple[int, ...]
    vocabulary: int
    widths: tuple[int, ...]  # the first is a multiple of the tile's width


ON_GPU = Sizes((torch.bfloat16, torch.float16), (1, 37, 1153), 1003, (128, 100))  # 1153: ten row tiles, a group of two
INTERPRETED = Sizes((torch.float32,), (1, 37), 131, (32, 20))


def running_gpu_backend(device: torch.device) -> AbstractContextManager[None]:
    """A block in which CPU tensors run the Triton kernels too, interpreted."""
    return nullcontext() if device.type == "cuda" else dispatch.forced("gpu")


def launches(device: torch.device) -> list[Launch]:
    """Every kernel with every switch that changes what it reads or writes."""
    sizes = INTERPRETED if device.type == "cpu" else ON_GPU
    found = [*_row_launches(), *token_launches(), *group_launches(), *_tile_launches(sizes)]
    return found if device.type == "cpu" else [*found, *_op_launches(sizes)]


class _Rows(NamedTuple):
    """Logits [R, V], and the options with which the kernels read them."""

    num_rows: int
    vocabulary: int
    dtype: torch.dtype = torch.float32
    entropy: bool = False
    softcap: float | None = None
    per_row: bool = False
    narrow: bool = False  # the gradient takes the first half of each row, in bfloat16

    @property
    def name(self) -> str:
        switches = {"entropy": self.entropy, "softcap": self.softcap, "temperatures": self.per_row}
        named = ", ".join(k for k, v in switches.items() if v)
        dtype = str(self.dtype).removeprefix("torch.")
        kind = "NARROW" if self.narrow else dtype
        return f"rows {kind} {self.num_rows} x {self.vocabulary}" + (f", {named}" if named else "")

    def logits(self) -> Tensor:
        return (2 * normal(self.num_rows, self.vocabulary, seed=self.vocabulary)).to(self.dtype)

    def temperature(self) -> Tensor | float:
        return torch.linspace(0.5, 2.0, self.num_rows) if self.per_row else 0.7

    def upstream(self) -> tuple[Tensor, Tensor]:
        """The gradients of logprobs, where one row has none, and of entropies."""
        of_logprobs, of_entropy = normal(2, self.num_rows, seed=1)
        if self.num_rows > 2:
            of_logprobs[2] = of_entropy[2] = 0
        return of_logprobs, of_entropy


def _row_launches() -> list[Launch]:
    shapes = [
        _Rows(5, 1003),
        _Rows(1, 7, entropy=True),
        _Rows(3, 9001, torch.bfloat16, entropy=True, softcap=5.0, per_row=True),
        _Rows(3, 5001, torch.float16, per_row=True),
        _Rows(3, 9001, narrow=True),  # three blocks, whose stores fall on each other's logits
        _Rows(3, 9001, narrow=True, entropy=True, softcap=5.0, per_row=True),
    ]
    of_logits = [
        Launch(r.name, ("_row_stats", "_row_gradient"), partial(_rows_by_kernels, r), partial(_rows_by_definition, r),
               torch.bfloat16 if r.narrow else r.dtype)
        for r in shapes
    ]  # fmt: skip
    exponentials = [
        Launch(f"exponentials of {r.name}", ("_exponentials",), partial(_exponentials_by_kernel, r),
               partial(_exponentials_by_definition, r), torch.bfloat16 if r.narrow else r.dtype)
        for r in (shapes[0], _Rows(3, 9001, narrow=True, entropy=True, per_row=True))
    ]  # fmt: skip
    return of_logits + exponentials


def _rows_by_kernels(r: _Rows, device: torch.device) -> Outcome:
    """The kernels' outcome. The stride of the rows is larger than their length."""
    primitives = primitives_for(device)
    logits = torch.full((r.num_rows, r.vocabulary + 3), float("nan"), dtype=r.dtype).to(device)[:, : r.vocabulary]
    logits.copy_(r.logits())
    temperature = r.temperature()
    transform = LogitTransform(
        temperature.to(device) if isinstance(temperature, Tensor) else temperature, r.softcap or 0.0
    )
    target_ids = some_target_ids(r.num_rows, r.vocabulary).to(device)
    stats = primitives.row_stats(logits, target_ids, transform, r.entropy)
    of_logprobs, of_entropy = (t.to(device) for t in r.upstream())
    out = logits.view(torch.bfloat16)[:, : r.vocabulary] if r.narrow else torch.empty_like(logits)
    primitives.row_gradient(logits, target_ids, transform, stats, of_logprobs, of_entropy if r.entropy else None, out)
    return present(logprobs=stats.logprobs, lse=stats.lse, entropy=stats.entropy, grad_logits=out)


def _rows_by_definition(r: _Rows, dtype: torch.dtype) -> Outcome:
    kept = torch.float32 if r.narrow and dtype == torch.bfloat16 else dtype
    logits = r.logits().to(kept).requires_grad_()
    outcome = _differentiated(logits, r.num_rows, r.vocabulary, r.temperature(), r.softcap, r.entropy, r.upstream())
    return outcome | {"grad_logits": outcome["grad_logits"].to(dtype)}


def _exponentials_by_kernel(r: _Rows, device: torch.device) -> Outcome:
    """Statistics and probabilities by exponentials whose offsets are off by 1, 4, 7 ... nats."""
    logits, target_ids = r.logits().to(device), some_target_ids(r.num_rows, r.vocabulary).to(device)
    temperature = r.temperature()
    transform = LogitTransform(temperature.to(device) if isinstance(temperature, Tensor) else temperature)
    exact = _rows_by_definition(r._replace(narrow=False), torch.float64)
    offsets = (exact["lse"] + 1 + 3 * torch.arange(r.num_rows)).float().to(device)
    sums = ExponentialSums.zeros(logits, r.entropy)
    out = logits.view(torch.bfloat16)[:, : r.vocabulary] if r.narrow else logits
    primitives_for(device).exponentials(logits, 0, target_ids, transform, offsets, sums, out)
    stats = sums.stats(offsets)
    probabilities = (out.double() / sums.total[:, None]).to(out.dtype)
    return present(logprobs=stats.logprobs, lse=stats.lse, entropy=stats.entropy, grad_lse=probabilities)


def _exponentials_by_definition(r: _Rows, dtype: torch.dtype) -> Outcome:
    kept = _rows_by_definition(r._replace(narrow=False), torch.float32 if dtype == torch.bfloat16 else dtype)
    temperature = r.temperature()
    scaled = r.logits().to(kept["lse"].dtype) / (
        temperature[:, None] if isinstance(temperature, Tensor) else temperature
    )
    outcome = {name: kept[name] for name in ("logprobs", "lse", "entropy") if name in kept}
    return outcome | {"grad_lse": torch.softmax(scaled, 1).to(dtype)}


def _differentiated(
    logits: Tensor,
    num_rows: int,
    vocabulary: int,
    temperature: Tensor | float,
    softcap: float | None,
    entropy: bool,
    upstream: tuple[Tensor, Tensor],
    with_gradient: bool = True,
) -> Outcome:
    """Statistics and gradient of a leaf of logits, by the definition, in float32 or wider."""
    wide = statistics_dtype(logits.dtype)
    temperature = temperature.to(wide) if isinstance(temperature, Tensor) else temperature
    bent = logits.to(wide) if softcap is None else softcap * torch.tanh(logits.to(wide) / softcap)
    lse = torch.logsumexp(bent / (temperature[:, None] if isinstance(temperature, Tensor) else temperature), -1)
    ids = some_target_ids(num_rows, vocabulary)
    logprobs, entropies = reference.logprobs_from_logits(logits.to(wide), ids, temperature=temperature, softcap=softcap)
    value = (logprobs * upstream[0]).sum() + ((entropies * upstream[1]).sum() if entropy else 0)
    (gradient,) = torch.autograd.grad(value, logits) if with_gradient else (None,)
    return present(logprobs=logprobs, lse=lse, entropy=entropies if entropy else None, grad_logits=gradient)


# The matmul that makes exponentials of the logits, and sums them.


_AGAIN = ("_stats_again", "_combine", "_store_again", "_clear")
_TILED = ("_linear_tiles", *_AGAIN)


class _Head(NamedTuple):
    """Hidden states [R, D] in front of a head [V, D]."""

    num_rows: int
    width: int
    vocabulary: int
    dtype: torch.dtype
    bias: bool = False
    entropy: bool = False
    per_row: bool = False
    stored: bool = True  # whether the exponentials are stored, for the gradient
    persistent: bool = False
    spread: float = 2.0  # standard deviation of the logits: far apart, rows are beyond what their offsets allow

    @property
    def kernels(self) -> tuple[str, ...]:
        return ("_persistent_tiles" if self.persistent else _TILED[0], *(_AGAIN if self.stored else _AGAIN[:2]))

    @property
    def name(self) -> str:
        switches = {"bias": self.bias, "entropy": self.entropy, "temperatures": self.per_row}
        switches |= {"unstored": not self.stored, "computed again": self.spread > 2, "persistent": self.persistent}
        named = ", ".join(k for k, v in switches.items() if v)
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{dtype} {self.num_rows} x {self.width} x {self.vocabulary}" + (f", {named}" if named else "")

    def inputs(self) -> tuple[Tensor, Tensor, Tensor | None]:
        hidden = normal(self.num_rows, self.width, seed=5, dtype=self.dtype)
        weight = normal(self.vocabulary, self.width, seed=6) * (self.spread * self.width**-0.5)
        return hidden, weight.to(self.dtype), normal(self.vocabulary, seed=7, dtype=self.dtype) if self.bias else None

    def rows(self) -> _Rows:
        return _Rows(self.num_rows, self.vocabulary, per_row=self.per_row)


def _tile_launches(sizes: Sizes) -> list[Launch]:
    wanted = [
        _Head(num_rows, width, sizes.vocabulary, dtype, stored=dtype != torch.float16)
        for dtype in sizes.dtypes for num_rows in sizes.rows for width in sizes.widths[:1]
    ]  # fmt: skip
    dtype, few, odd = sizes.dtypes[0], sizes.rows[1], sizes.widths[1]
    wanted += [
        _Head(few, odd, sizes.vocabulary, dtype, bias=True, entropy=True, per_row=True),
        _Head(few, odd, sizes.vocabulary, dtype, entropy=True, stored=False),
        _Head(few, odd, sizes.vocabulary - 1, dtype, per_row=True, stored=False),
        _Head(1, odd, 7, dtype, bias=True),
        _Head(few, odd, sizes.vocabulary, dtype, entropy=True, spread=60.0),
        _Head(few, odd, sizes.vocabulary, dtype, per_row=True, stored=False, spread=60.0),
        *(_Head(rows, sizes.widths[0], sizes.vocabulary, dtype, entropy=True, persistent=True) for rows in sizes.rows),
    ]
    return [
        Launch(f"tiles {h.name}", h.kernels,
               partial(_tiles_by_kernels, h), partial(_tiles_by_definition, h), h.dtype)
        for h in wanted
    ]  # fmt: skip


def _tiles_by_kernels(h: _Head, device: torch.device) -> Outcome:
    from fastgrpo_kernels.gpu.tiles import TileShape

    shape = TileShape() if device.type == "cuda" else TileShape(rows=16, vocabulary=64, width=16, group=2)
    shape = shape._replace(persistent=h.persistent)
    hidden, weight, bias = (None if t is None else t.to(device) for t in h.inputs())
    assert hidden is not None and weight is not None
    temperature, rows = h.rows().temperature(), slice(0, h.num_rows)
    transform = LogitTransform(temperature.to(device) if isinstance(temperature, Tensor) else temperature)
    target_ids = some_target_ids(h.num_rows, h.vocabulary).to(device)
    tiled = TiledHead(LinearInputs(hidden, weight, bias, target_ids, transform, h.num_rows), h.stored, shape)
    stats = tiled.forward(rows, h.entropy)
    gradient = tiled.gradient(rows, stats, h.rows().upstream()[0].to(device), None).whole() if h.stored else None
    return present(logprobs=stats.logprobs, lse=stats.lse, entropy=stats.entropy, grad_logits=gradient)


def _tiles_by_definition(h: _Head, dtype: torch.dtype) -> Outcome:
    """The outcome of plain torch: in 16 bits the matmul's result and the gradient are rounded."""
    hidden, weight, bias = (None if t is None else t.to(dtype) for t in h.inputs())
    assert hidden is not None and weight is not None
    logits = torch.nn.functional.linear(hidden, weight, bias).requires_grad_()
    of_logprobs, of_entropy = h.rows().upstream()
    temperature = h.rows().temperature()
    outcome = _differentiated(
        logits, h.num_rows, h.vocabulary, temperature, None, False, (of_logprobs, of_entropy), h.stored
    )
    if h.entropy:
        shown = _differentiated(logits, h.num_rows, h.vocabulary, temperature, None, True, (of_logprobs, of_entropy))
        outcome["entropy"] = shown["entropy"]
    return outcome


# Whole ops, in chunks, with each of the two first matmuls: 16 bits on a GPU.


def _op_launches(sizes: Sizes) -> list[Launch]:
    h = _Head(sizes.rows[1], sizes.widths[1], sizes.vocabulary, sizes.dtypes[0], bias=True)
    by_rows = ("_exponentials", *_AGAIN)
    found = []
    for choice, kernels in (("triton", _TILED), ("cublas", by_rows)):
        note = "" if choice == "triton" else " NARROW"
        found += [
            Launch(f"linear_grpo {choice}{note}", (*kernels, "_token_objective"),
                   partial(_grpo_by_op, h, choice), partial(_grpo_by_definition, h), h.dtype),
            Launch(f"linear_logprobs {choice}{note}", kernels, partial(_logprobs_by_op, h, choice),
                   partial(_logprobs_by_definition, h), h.dtype),
        ]  # fmt: skip
    from_logits = _Rows(5, 1003, torch.bfloat16)
    return [
        *found,
        Launch("logprobs_from_logits overwritten", ("_row_stats", "_row_gradient"), partial(_overwritten, from_logits),
               partial(_overwritten_by_definition, from_logits), torch.bfloat16),
    ]  # fmt: skip


def _leaves(h: _Head, device: torch.device | str, dtype: torch.dtype) -> list[Tensor]:
    return [t.to(device, dtype).requires_grad_() for t in h.inputs() if t is not None]


def _known(h: _Head, device: torch.device | str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Target ids, old logprobs, advantages and the mask."""
    wide = statistics_dtype(dtype)
    hidden, weight, bias = _leaves(h, "cpu", torch.float64)
    ids = some_target_ids(h.num_rows, h.vocabulary)
    logprobs, _ = reference.linear_logprobs(hidden, weight, ids, bias=bias)
    # Ratios are far within the clip or far beyond it, so that rounding decides nothing.
    old = (logprobs.detach() - torch.where(torch.arange(h.num_rows) % 5 == 0, 0.7, 0.05)).float()
    advantages, mask = normal(h.num_rows, seed=8), torch.arange(h.num_rows) % 7 != 3
    return ids.to(device), old.to(device, wide), advantages.to(device, wide), mask.to(device)


def _grpo_by_op(h: _Head, choice: Any, device: torch.device) -> Outcome:
    hidden, weight, bias = leaves = _leaves(h, device, h.dtype)
    ids, old, advantages, mask = _known(h, device, h.dtype)
    with head.first_matmul(choice):
        out = linear_grpo(hidden, weight, ids, old, advantages, mask, h.num_rows, bias=bias, chunk_tokens=16)
        gradients = torch.autograd.grad(out.loss, leaves)
    return {"loss": out.loss, **_named(gradients)}


def _grpo_by_definition(h: _Head, dtype: torch.dtype) -> Outcome:
    leaves = _leaves(h, "cpu", dtype)
    ids, old, advantages, mask = _known(h, "cpu", dtype)
    logprobs, _ = _plain_logprobs(leaves, ids)
    loss = reference.grpo_loss(logprobs, old, advantages, h.num_rows, Objective(), response_mask=mask)
    return {"loss": loss, **_named(torch.autograd.grad(loss, leaves))}


def _logprobs_by_op(h: _Head, choice: Any, device: torch.device) -> Outcome:
    hidden, weight, bias = leaves = _leaves(h, device, h.dtype)
    ids, upstream = some_target_ids(h.num_rows, h.vocabulary).to(device), h.rows().upstream()[0].to(device)
    with head.first_matmul(choice):
        logprobs, _ = linear_logprobs(hidden, weight, ids, bias=bias, chunk_tokens=16)
        gradients = torch.autograd.grad(logprobs, leaves, upstream)
    return {"logprobs": logprobs, **_named(gradients)}


def _logprobs_by_definition(h: _Head, dtype: torch.dtype) -> Outcome:
    leaves = _leaves(h, "cpu", dtype)
    logprobs, _ = _plain_logprobs(leaves, some_target_ids(h.num_rows, h.vocabulary))
    upstream = h.rows().upstream()[0].to(logprobs.dtype)
    return {"logprobs": logprobs, **_named(torch.autograd.grad(logprobs, leaves, upstream))}


def _plain_logprobs(leaves: Sequence[Tensor], ids: Tensor) -> tuple[Tensor, Tensor]:
    """Plain torch's logprobs and entropies: logits rounded to the leaves' dtype, then float32."""
    hidden, weight, bias = leaves
    logits = torch.nn.functional.linear(hidden, weight, bias)
    return reference.logprobs_from_logits(logits.to(statistics_dtype(logits.dtype)), ids)


def _named(gradients: Sequence[Tensor]) -> Outcome:
    return dict(zip(("grad_hidden", "grad_weight", "grad_bias"), gradients, strict=True))


def _overwritten(r: _Rows, device: torch.device) -> Outcome:
    logits = r.logits().to(device).requires_grad_()
    ids = some_target_ids(r.num_rows, r.vocabulary).to(device)
    logprobs, _ = logprobs_from_logits(logits, ids, temperature=0.7, overwrite_logits=True)
    (gradient,) = torch.autograd.grad(logprobs, logits, r.upstream()[0].to(device))
    return {"logprobs": logprobs, "grad_logits": gradient}


def _overwritten_by_definition(r: _Rows, dtype: torch.dtype) -> Outcome:
    return {name: value for name, value in _rows_by_definition(r, dtype).items() if name != "lse"}
