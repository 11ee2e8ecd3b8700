"""Heads that keep exponentials in the place of logits: no pass over them is left for the gradient.

What is kept of a logit x is exp(x - offset), where a row's offset is known before its logits are: the target's logit,
one dot product. For a token that was sampled that is near enough to the log-sum-exp, since a float loses no digits by
its exponent. With Z the row's sum, the gradient of logprob to logit j is ``[j = target] - exp(x_j - offset) / Z``: one
number a row is written in the target's place, and the factor 1 / Z goes with the derivative of the loss onto the rows
of dX and of X. Rows whose target is further than `WINDOW` below the log-sum-exp are computed again, exactly.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..primitives import ExponentialSums, RowStats
from .head import Head, LinearInputs, LogitGradient, chunks
from .matmuls import multiply

if TYPE_CHECKING:
    from ..gpu.tiles import TileShape

# Nats from a row's offset up to its log-sum-exp. Float32 and bfloat16 end at e^88; 32 is where the difference from the
# offset begins to have fewer digits than most logits. Of a vocabulary of 150,000 a sampled token is beyond it less than
# once in 10^8.
WINDOW = 32.0


class ExponentialHead(Head):
    """A head whose logits become exponentials in their place, on a CPU a block of columns at a time, while in cache."""

    def __init__(self, inputs: LinearInputs, keep: bool) -> None:
        super().__init__(inputs)
        self._known = (self.target_ids >= 0) & (self.target_ids < len(self.weight))
        if not self.on_gpu and not self._known.all():  # on a GPU the logprob of an id that is none is NaN
            row = int((~self._known).nonzero()[0])
            raise ValueError(
                f"target id {int(self.target_ids[row])} of row {row} is outside the vocabulary of {len(self.weight)}"
            )
        self._ids = self.target_ids.where(self._known, 0)
        self._keep = keep
        self._total: Tensor | None = None  # [R] of the chunk that was computed last
        self._buffer = self._new_buffer()

    def _new_buffer(self) -> Tensor | None:
        return self._new_logits(len(self.weight) if self._keep else min(len(self.weight), self._columns))

    def _new_logits(self, columns: int) -> Tensor:
        """A buffer for a chunk, on a CPU with the rows of a column side by side: there all three matmuls are faster."""
        return self._rows_of(columns) if self.on_gpu else self._columns_of_all(columns)

    def forward(self, rows: slice, entropy: bool) -> RowStats:
        offsets = self._target_logits(rows)
        sums = self._exponentials(rows, offsets, entropy)
        stats = sums.stats(offsets)
        self._total = sums.total
        if self.on_gpu:
            self._compute_again_on_gpu(rows, stats)
            return stats
        beyond = (~(sums.total.log().abs() <= WINDOW)).nonzero()[:, 0]  # NaN is
        return self._compute_again(rows, offsets, beyond, entropy) if len(beyond) else stats

    def recompute(self, rows: slice, lse: Tensor) -> None:
        self._total = self._exponentials(rows, lse, entropy=False).total  # 1 but for rounding

    def gradient(
        self, rows: slice, stats: RowStats, grad_logprobs: Tensor, grad_entropy: Tensor | None
    ) -> LogitGradient:
        assert grad_entropy is None and self._total is not None
        values, unused = self._narrow(self.logits(rows)), grad_logprobs == 0
        at_target = self._total * torch.expm1(stats.logprobs)  # Z (p - 1) without cancellation
        values.scatter_(1, self._ids[rows][:, None], at_target[:, None].to(values.dtype))
        self._clear(values, unused & ~at_target.isfinite())
        inverse, inverses = self.transform.of(rows).inverse()
        factors = -grad_logprobs * (inverse if inverses is None else inverses) / self._total
        return LogitGradient(values, factors.to(grad_logprobs.dtype).masked_fill_(unused, 0.0))

    def _target_logits(self, rows: slice) -> Tensor:  # [R]
        """What the softmax will see of each target's logit, but for products that are rounded to hidden's dtype."""
        ids = self._ids[rows]
        logits = (self.hidden[rows] * self.weight.index_select(0, ids)).sum(1, dtype=self.statistics_dtype)
        if self.bias is not None:
            logits += self.bias.index_select(0, ids)
        inverse, inverses = self.transform.of(rows).inverse()
        return logits * (inverse if inverses is None else inverses)

    def _exponentials(self, rows: slice, offsets: Tensor, entropy: bool) -> ExponentialSums:
        """One matmul: the chunk's exponentials, kept if they are wanted, and their sums."""
        hidden, ids, transform = self.hidden[rows], self.target_ids[rows], self.transform.of(rows)
        sums = ExponentialSums.zeros(hidden, entropy)
        for columns in chunks(len(self.weight), self._columns):
            logits = self._columns_of(rows, columns)
            self._multiply(rows, columns, logits)
            self.primitives.exponentials(logits, columns.start, ids, transform, offsets, sums, self._narrow(logits))
        return sums

    def _multiply(self, rows: slice, columns: slice, logits: Tensor) -> None:
        multiply(self.hidden[rows], self.weight[columns].T, logits)
        if self.bias is not None:
            logits.add_(self.bias[columns])

    def _columns_of(self, rows: slice, columns: slice) -> Tensor:  # [R, C]
        logits = self.logits(rows)
        return logits[:, columns] if self._keep else logits[:, : columns.stop - columns.start]

    def _compute_again(self, rows: slice, offsets: Tensor, beyond: Tensor, entropy: bool) -> RowStats:
        """The statistics, and what is kept, with the log-sum-exp as offset of some rows; the others stay as they are.

        The matmuls are the same, so that their roundings are: a backward pass computes the logits once more.
        """
        logits = self.logits(rows) if self._keep else self._new_logits(len(self.weight))[: rows.stop - rows.start]
        for columns in chunks(len(self.weight), self._columns):
            self._multiply(rows, columns, logits[:, columns])
        ids, transform = self.target_ids[rows], self.transform.of(rows)
        exact = self.primitives.row_stats(logits[beyond].contiguous(), ids[beyond], transform.of(beyond), False)
        offsets[beyond] = exact.lse
        sums = ExponentialSums.zeros(offsets, entropy)
        self.primitives.exponentials(logits, 0, ids, transform, offsets, sums, logits)
        self._total = sums.total
        return sums.stats(offsets)

    def _compute_again_on_gpu(self, rows: slice, stats: RowStats) -> None:
        """Puts rows beyond the window right, in `stats` and in what is kept, without knowing whether there are any."""
        from ..gpu.again import compute_again

        assert self._total is not None
        kept = self._narrow(self.logits(rows)) if self._keep else None
        compute_again(
            self.hidden[rows], self.weight, self.bias, self.target_ids[rows], self.transform.of(rows), kept,
            self._total, stats, WINDOW,
        )  # fmt: skip

    def _clear(self, values: Tensor, rows: Tensor) -> None:  # [R, V], [R] bool
        """Fills rows with 0: 0 times what is not finite would not be."""
        if self.on_gpu:
            from ..gpu.again import clear

            clear(values, rows)
        elif rows.any():
            values.masked_fill_(rows[:, None], 0.0)


class TiledHead(ExponentialHead):
    """A head for bfloat16 on a GPU: its exponentials come from the matmul's accumulators, and logits exist nowhere."""

    def __init__(self, inputs: LinearInputs, keep: bool, shape: "TileShape | None" = None) -> None:
        from ..gpu.tiles import TileShape

        hidden, weight = inputs.hidden.contiguous(), inputs.weight.contiguous()
        chunk_tokens = inputs.chunk_tokens or (4096 if keep else 8192)
        super().__init__(inputs._replace(hidden=hidden, weight=weight, chunk_tokens=chunk_tokens), keep)
        self._shape = shape or TileShape()

    def _new_buffer(self) -> Tensor | None:
        if not self._keep:
            return None
        vocabulary = len(self.weight)
        stride = -(-vocabulary // 8) * 8  # rows begin at multiples of 16 bytes, as tensor descriptors want them
        return self.hidden.new_empty(self._longest(), stride)[:, :vocabulary]

    def _exponentials(self, rows: slice, offsets: Tensor, entropy: bool) -> ExponentialSums:
        from ..gpu.tiles import linear_tiles

        return linear_tiles(
            self.hidden[rows], self.weight, self.bias, self.target_ids[rows], self.transform.of(rows), offsets,
            entropy, self.logits(rows) if self._keep else None, self._shape,
        )  # fmt: skip
