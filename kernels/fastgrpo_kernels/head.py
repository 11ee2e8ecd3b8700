"""The LM head over chunks of tokens: logits of one chunk exist at a time, and become their own gradient.

Sums over a chunk and over chunks are float32, or float64 for float64 inputs. The matmuls that give dX and dW are
cuBLAS's, on a CPU MKL's. So is the first one, or on a GPU it is a Triton kernel that computes the softmax's statistics
as well.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from fastgrpo_kernels.dispatch import primitives_for
from fastgrpo_kernels.primitives import LogitTransform, RowStats, statistics_dtype

if TYPE_CHECKING:
    from fastgrpo_kernels.gpu.tiles import TileStats

_MIN_LOGIT_BYTES = 2**25
# On a CPU a few hundred tokens by this many columns at a time run as fast as all tokens by all columns; by all columns
# at once they are slower (kernels/README.md).
_CPU_COLUMNS = 1024
_CPU_PADDING = 16


def chunks(num_rows: int, chunk_tokens: int) -> Iterator[slice]:
    """Slices of at most ``chunk_tokens`` rows, as equal as can be: a short last one would cost a whole pass over dW.

    Where ``chunk_tokens`` is a multiple of 16 every slice starts at one: matmuls of odd shapes are slower.
    """
    count = -(-num_rows // chunk_tokens)
    step = 16 if chunk_tokens % 16 == 0 else 1
    units = -(-num_rows // step)
    for i in range(count):
        start, stop = units * i // count * step, units * (i + 1) // count * step
        yield slice(start, min(stop, num_rows))


class LinearInputs(NamedTuple):
    """What the logits of a micro-batch are made of, and how many rows of them exist at one time."""

    hidden: Tensor  # [T, D]
    weight: Tensor  # [V, D]
    bias: Tensor | None  # [V]
    target_ids: Tensor  # [T] int64
    transform: LogitTransform
    chunk_tokens: int = 0  # 0: the head chooses

    def select(self, rows: Tensor) -> "LinearInputs":  # [R] int64
        """The inputs of these tokens alone."""
        hidden, target_ids = self.hidden.index_select(0, rows), self.target_ids.index_select(0, rows)
        return self._replace(hidden=hidden, target_ids=target_ids, transform=self.transform.of(rows))

    def encode(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor, float, Tensor | None, float, int]:
        """The inputs as a custom op's schema takes them."""
        return self.hidden, self.weight, self.bias, self.target_ids, *self.transform.encode(), self.chunk_tokens


class Head:
    """The LM head over chunks of tokens, with one buffer for what is kept of a chunk's logits."""

    def __init__(self, inputs: LinearInputs) -> None:
        self.hidden, self.weight, self.bias, self.target_ids, self.transform, self.chunk_tokens = inputs
        self.primitives = primitives_for(self.hidden.device)
        self._buffer: Tensor | None = None

    def chunks(self) -> Iterator[slice]:
        return chunks(len(self.hidden), self.chunk_tokens)

    def forward(self, rows: slice, entropy: bool) -> RowStats:
        """One matmul, and the statistics of the chunk's logits."""
        raise NotImplementedError

    def recompute(self, rows: slice) -> None:
        """The same matmul for a chunk whose statistics are known, before its `gradient`."""
        raise NotImplementedError

    def gradient(
        self, rows: slice, stats: RowStats, grad_logprobs: Tensor, grad_entropy: Tensor | None
    ) -> Tensor:  # [R, V] in the dtype of hidden
        """The gradient of the logits, in the place of the chunk that was computed last."""
        raise NotImplementedError

    def logits(self, rows: slice) -> Tensor:
        """The buffer of this chunk, [R, V]."""
        assert self._buffer is not None
        return self._buffer[: rows.stop - rows.start]

    def release(self) -> None:
        """Gives the buffer's memory back."""
        self._buffer = None

    def _longest(self) -> int:
        return max((rows.stop - rows.start for rows in self.chunks()), default=0)


class LogitsHead(Head):
    """A head that keeps a chunk's logits in float32 (float64 for float64), with row passes over them."""

    def __init__(self, inputs: LinearInputs) -> None:
        hidden, weight = inputs.hidden, inputs.weight
        on_cpu, dtype = hidden.device.type == "cpu", statistics_dtype(hidden.dtype)
        if on_cpu:  # where a 16-bit matmul returns rounded sums, so it is done on wider copies
            hidden, weight = hidden.to(dtype), weight.to(dtype)
        chunk_tokens = inputs.chunk_tokens or default_chunk_tokens(weight, hidden.device)
        super().__init__(inputs._replace(hidden=hidden, weight=weight, chunk_tokens=chunk_tokens))
        vocabulary = len(weight)
        self._columns = _CPU_COLUMNS if on_cpu else max(vocabulary, 1)
        # On a CPU rows a whole number of pages apart fall on the same few sets of its caches.
        row_stride = vocabulary + (_CPU_PADDING if on_cpu and vocabulary % 1024 == 0 else 0)
        self._buffer = hidden.new_empty(self._longest(), row_stride, dtype=dtype)[:, :vocabulary]

    def forward(self, rows: slice, entropy: bool) -> RowStats:
        self.recompute(rows)
        return self.primitives.row_stats(self.logits(rows), self.target_ids[rows], self.transform.of(rows), entropy)

    def recompute(self, rows: slice) -> None:
        logits, hidden = self.logits(rows), self.hidden[rows]
        for columns in chunks(len(self.weight), self._columns):
            multiply(hidden, self.weight[columns].T, logits[:, columns])
        if self.bias is not None:
            logits.add_(self.bias)

    def gradient(self, rows: slice, stats: RowStats, grad_logprobs: Tensor, grad_entropy: Tensor | None) -> Tensor:
        """Where hidden is 16-bit, the gradient takes the first half of each row of the buffer."""
        out = logits = self.logits(rows)
        if self.hidden.dtype != logits.dtype:
            out = logits.view(self.hidden.dtype)[:, : len(self.weight)]
        self.primitives.row_gradient(
            logits, self.target_ids[rows], self.transform.of(rows), stats, grad_logprobs, grad_entropy, out
        )
        return out


class TiledHead(Head):
    """A head for 16 bits on a GPU: statistics come from the matmul's accumulators, and a chunk keeps exponentials.

    These have 16 bits. Nothing is kept where no gradient will be asked for.
    """

    def __init__(self, inputs: LinearInputs, keep_logits: bool) -> None:
        from fastgrpo_kernels.gpu.tiles import TileShape

        hidden, weight = inputs.hidden.contiguous(), inputs.weight.contiguous()
        chunk_tokens = inputs.chunk_tokens or (4096 if keep_logits else 8192)
        super().__init__(inputs._replace(hidden=hidden, weight=weight, chunk_tokens=chunk_tokens))
        self._shape = TileShape()
        self._tiles: TileStats | None = None
        if keep_logits:
            self._buffer = hidden.new_empty(self._longest(), len(weight))

    def forward(self, rows: slice, entropy: bool) -> RowStats:
        from fastgrpo_kernels.gpu.tiles import combine_tiles

        return combine_tiles(self._matmul(rows, entropy))

    def recompute(self, rows: slice) -> None:
        self._matmul(rows, entropy=False)

    def gradient(self, rows: slice, stats: RowStats, grad_logprobs: Tensor, grad_entropy: Tensor | None) -> Tensor:
        from fastgrpo_kernels.gpu.tiles import tile_gradient

        assert grad_entropy is None, "the entropy's gradient needs the logits themselves"
        assert self._tiles is not None
        out = self.logits(rows)
        transform = self.transform.of(rows)
        tile_gradient(out, self._tiles, self.target_ids[rows], transform, stats, grad_logprobs, self._shape)
        return out

    def _matmul(self, rows: slice, entropy: bool) -> "TileStats":
        from fastgrpo_kernels.gpu.tiles import linear_tiles

        kept = None if self._buffer is None else self.logits(rows)
        tiles = linear_tiles(
            self.hidden[rows], self.weight, self.bias, self.target_ids[rows], self.transform.of(rows), entropy, kept,
            self._shape,
        )  # fmt: skip
        self._tiles = tiles
        return tiles


_first_matmul: Literal["triton", "cublas", "auto"] = "auto"


@contextmanager
def first_matmul(choice: Literal["triton", "cublas", "auto"]) -> Iterator[None]:
    """Within the block this matmul makes the logits on a GPU: for tests, and for benchmarks that compare the two."""
    global _first_matmul
    before, _first_matmul = _first_matmul, choice
    try:
        yield
    finally:
        _first_matmul = before


def make_head(inputs: LinearInputs, *, keep_logits: bool = True, keep_exact: bool = False) -> Head:
    """The head that suits the device and the gradient that will be asked for.

    ``keep_logits``: there will be one. ``keep_exact``: it needs each log-probability, not only each probability (the
    entropy's does), or the logits themselves are wanted.
    """
    hidden, exact = inputs.hidden, keep_exact or inputs.transform.softcap != 0
    can_tile = hidden.is_cuda and hidden.dtype in (torch.bfloat16, torch.float16) and not exact
    if can_tile and _tiles_are_better(hidden.device, keep_logits):
        return TiledHead(inputs, keep_logits)
    return LogitsHead(inputs)


def _tiles_are_better(device: torch.device, keep_logits: bool) -> bool:
    """Whether the Triton matmul is expected to be faster: always where no logits are kept, which it alone can do.

    Else on Hopper and later, where Triton's matmul is as fast as cuBLAS, and not on Ampere, where it is slower. Both
    are measurements of others (triton-lang/triton #6523), not ours.
    """
    if _first_matmul != "auto":
        return _first_matmul == "triton"
    return not keep_logits or torch.cuda.get_device_capability(device)[0] >= 9


class HeadGradients:
    """Gradients of hidden, weight and bias, added up chunk by chunk; None where one is not needed."""

    def __init__(self, head: Head, hidden: bool, weight: bool, bias: bool) -> None:
        dtype = statistics_dtype(head.hidden.dtype)
        self.head, self.needed = head, hidden or weight or bias
        self.hidden = torch.empty_like(head.hidden) if hidden else None
        # Rounding the sum to 16 bits at every chunk would lose its small terms.
        self.weight = torch.empty_like(head.weight, dtype=dtype) if weight else None
        self._weight_is_empty = weight
        self.bias = head.weight.new_zeros(len(head.weight), dtype=dtype) if bias else None

    def add(self, rows: slice, grad_logits: Tensor) -> None:  # [R, V]
        """Adds the gradient of a chunk's logits, by two matmuls."""
        if self.hidden is not None:
            torch.mm(grad_logits, self.head.weight, out=self.hidden[rows])
        if self.weight is not None:
            if self._weight_is_empty:
                multiply(grad_logits.T, self.head.hidden[rows], self.weight)
                self._weight_is_empty = False
            else:
                add_product(grad_logits.T, self.head.hidden[rows], self.weight)
        if self.bias is not None:
            self.bias += grad_logits.sum(0, dtype=self.bias.dtype)

    def skip(self, rows: slice) -> None:
        """Adds nothing for a chunk whose logits have no gradient."""
        if self.hidden is not None:
            self.hidden[rows] = 0

    def finished(self, dtype: torch.dtype, dtype_of_sums: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients: hidden's in ``dtype``, weight's and bias's in that of sums; [0] where one is not needed."""
        if self.weight is not None and self._weight_is_empty:
            self.weight.zero_()
        self.head.release()  # the weight's gradient may have to be copied
        gradients = (self.hidden, self.weight, self.bias)
        hidden, weight, bias = (self.head.hidden.new_empty(0) if g is None else g for g in gradients)
        return hidden.to(dtype), weight.to(dtype_of_sums), bias.to(dtype_of_sums)


def empty_gradients(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, needed: Sequence[bool], dtype_of_sums: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Tensors like those of `HeadGradients.finished`, for an op's fake implementation."""
    dtypes = (hidden.dtype, dtype_of_sums, dtype_of_sums)
    of_hidden, of_weight, of_bias = (
        torch.empty_like(t, dtype=dtype) if need and t is not None else hidden.new_empty(0, dtype=dtype)
        for t, need, dtype in zip((hidden, weight, bias), needed, dtypes, strict=True)
    )
    return of_hidden, of_weight, of_bias


def default_chunk_tokens(weight: Tensor, device: torch.device) -> int:
    """Rows of logits that exist at one time.

    Each chunk reads and writes all of dW, so few large chunks are faster. On a CPU the buffer takes at most 0.4 of the
    memory of dW, which must exist anyway, or 32 MiB where that is more. On a GPU 2,048 rows keep that traffic at a
    tenth of the matmuls' time.
    """
    if device.type == "cuda":
        return 2048
    vocabulary, width = weight.shape
    return max(2 * width // 5, _MIN_LOGIT_BYTES // (4 * max(vocabulary, 1)), 32) // 16 * 16


def multiply(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Writes ``a @ b`` to ``out`` as the matmul accumulated it, whatever the dtype of a and b."""
    if a.dtype == out.dtype:
        torch.mm(a, b, out=out)
    else:
        torch.mm(a, b, out_dtype=out.dtype, out=out)


def add_product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Adds ``a @ b`` to ``out`` as the matmul accumulated it."""
    if a.dtype == out.dtype:
        torch.addmm(out, a, b, out=out)
    else:
        torch.addmm(out, a, b, out_dtype=out.dtype, out=out)
