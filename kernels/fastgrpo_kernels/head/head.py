"""What a head is: logits over chunks of tokens, of which one exists at a time and becomes its own gradient."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..dispatch import backend_for, primitives_for
from ..primitives import LogitTransform, RowStats, statistics_dtype

_MIN_LOGIT_BYTES = 2**25
# On a CPU a few hundred tokens by this many columns at a time run as fast as all tokens by all columns; by all columns
# at once they are slower (kernels/NOTES.md).
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


class LogitGradient(NamedTuple):
    """The gradient of a chunk's logits, ``factors[:, None] * values``."""

    values: Tensor  # [R, V] in the dtype of hidden
    factors: Tensor | None = None  # [R] in the dtype of the statistics; None: 1

    def whole(self) -> Tensor:  # [R, V]
        """The product, for those who look at it: the gradients of hidden and weight are made without it."""
        return self.values if self.factors is None else (self.values * self.factors[:, None]).to(self.values.dtype)


class Head:
    """The LM head over chunks of tokens, with one buffer for what is kept of a chunk's logits.

    On a CPU hidden and weight are as wide as the statistics: its 16-bit matmul returns rounded sums.
    """

    def __init__(self, inputs: LinearInputs) -> None:
        hidden, weight, self.bias, self.target_ids, self.transform, chunk_tokens = inputs
        self.statistics_dtype = statistics_dtype(hidden.dtype)
        self._on_cpu = hidden.device.type == "cpu"
        if self._on_cpu:
            hidden, weight = hidden.to(self.statistics_dtype), weight.to(self.statistics_dtype)
        self.hidden, self.weight = hidden, weight
        self.chunk_tokens = chunk_tokens or default_chunk_tokens(weight, hidden.device)
        self.primitives = primitives_for(hidden.device)
        self.on_gpu = backend_for(hidden.device) == "gpu"  # or as if: what the tensors hold is not waited for
        self._columns = _CPU_COLUMNS if self._on_cpu else max(len(weight), 1)  # of the weight in one matmul
        self._buffer: Tensor | None = None

    def chunks(self) -> Iterator[slice]:
        return chunks(len(self.hidden), self.chunk_tokens)

    def forward(self, rows: slice, entropy: bool) -> RowStats:
        """One matmul, and the statistics of the chunk's logits."""
        raise NotImplementedError

    def recompute(self, rows: slice, lse: Tensor) -> None:
        """The same matmul for a chunk whose statistics are known, before its `gradient`."""
        raise NotImplementedError

    def gradient(
        self, rows: slice, stats: RowStats, grad_logprobs: Tensor, grad_entropy: Tensor | None
    ) -> LogitGradient:
        """The gradient of the logits, in the place of the chunk that was computed last."""
        raise NotImplementedError

    def logits(self, rows: slice) -> Tensor:
        """The buffer of this chunk, [R, V]."""
        assert self._buffer is not None
        return self._buffer[: rows.stop - rows.start]

    def release(self) -> None:
        """Gives the buffer's memory back."""
        self._buffer = None

    def _columns_of_all(self, columns: int) -> Tensor:
        """A buffer as that of `_rows_of`, but the rows of a column are side by side."""
        return self.hidden.new_empty(columns, self._longest(), dtype=self.statistics_dtype).T

    def _rows_of(self, columns: int) -> Tensor:
        """A buffer of this many columns for every row of a chunk, in the dtype of the statistics.

        On a CPU rows a whole number of pages apart would fall on the same few sets of its caches.
        """
        stride = columns + (_CPU_PADDING if self._on_cpu and columns % 1024 == 0 else 0)
        return self.hidden.new_empty(self._longest(), stride, dtype=self.statistics_dtype)[:, :columns]

    def _narrow(self, logits: Tensor) -> Tensor:
        """The place of a chunk's gradient in its logits': where hidden is narrower, the first part of each row."""
        return logits if logits.dtype == self.hidden.dtype else logits.view(self.hidden.dtype)[:, : logits.shape[1]]

    def _longest(self) -> int:
        return max((rows.stop - rows.start for rows in self.chunks()), default=0)


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
