"""Heads that keep exponentials in the place of logits: no pass over them is left for the gradient.

What is kept of a logit x is exp(x - offset), where the offset of a row is known before its logits are: the target's
logit, one dot product, minus what its logprob is expected to be. Any offset within `WINDOW` of the log-sum-exp will do,
for a float loses no digits by its exponent. With Z the row's sum, the gradient of logprob to logit j is
``[j = target] - exp(x_j - offset) / Z``: one number a row is written in the target's place, and the factor 1 / Z goes
with the derivative of the loss onto the rows of dX and of X. Rows beyond the window are computed again, exactly.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastgrpo_kernels.head.head import Head, LinearInputs, LogitGradient, chunks
from fastgrpo_kernels.head.matmuls import multiply
from fastgrpo_kernels.primitives import ExponentialSums, RowStats

if TYPE_CHECKING:
    from fastgrpo_kernels.gpu.tiles import TileShape

# Nats between the offset of a row and its log-sum-exp. Float32 and bfloat16 hold e^-87 to e^88: within the window a
# probability is kept whole down to e^-47, and sums of a million have room above.
WINDOW = 40.0
_ROWS_AGAIN = 16


class ExponentialHead(Head):
    """A head whose logits become exponentials in their place, on a CPU a block of columns at a time, while in cache."""

    def __init__(self, inputs: LinearInputs, keep: bool) -> None:
        super().__init__(inputs)
        self._keep = keep
        self._total: Tensor | None = None  # [R] of the chunk that was computed last
        self._buffer = self._new_buffer()

    def _new_buffer(self) -> Tensor | None:
        return self._rows_of(len(self.weight) if self._keep else min(len(self.weight), self._columns))

    def forward(self, rows: slice, entropy: bool, expected: Tensor | None = None) -> RowStats:
        offsets = self._target_logits(rows)
        if expected is not None:
            offsets = offsets - expected.to(offsets.dtype).nan_to_num(nan=0.0).clamp(-WINDOW, 0.0)
        sums = self._exponentials(rows, offsets, entropy)
        stats = sums.stats(offsets)
        self._total = sums.total
        self._compute_again(rows, stats)
        return stats

    def recompute(self, rows: slice, lse: Tensor) -> None:
        self._total = self._exponentials(rows, lse, entropy=False).total.fill_(1.0)

    def gradient(
        self, rows: slice, stats: RowStats, grad_logprobs: Tensor, grad_entropy: Tensor | None
    ) -> LogitGradient:
        assert grad_entropy is None and self._total is not None
        values, unused = self._narrow(self.logits(rows)), grad_logprobs == 0
        at_target = self._total * torch.expm1(stats.logprobs)  # Z (p - 1) without cancellation
        values.scatter_(1, self.target_ids[rows][:, None], at_target[:, None].to(values.dtype))
        self._clear(values, unused & ~self._total.isfinite())
        inverse, inverses = self.transform.of(rows).inverse()
        factors = -grad_logprobs * (inverse if inverses is None else inverses) / self._total
        return LogitGradient(values, factors.to(grad_logprobs.dtype).masked_fill_(unused, 0.0))

    def _target_logits(self, rows: slice) -> Tensor:  # [R]
        """About what the softmax will see of each target's logit, without the logits."""
        ids, dtype = self.target_ids[rows], self.statistics_dtype
        logits = (self.hidden[rows].to(dtype) * self.weight.index_select(0, ids).to(dtype)).sum(1)
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
            multiply(hidden, self.weight[columns].T, logits)
            if self.bias is not None:
                logits.add_(self.bias[columns])
            self.primitives.exponentials(logits, columns.start, ids, transform, offsets, sums, self._narrow(logits))
        return sums

    def _columns_of(self, rows: slice, columns: slice) -> Tensor:  # [R, C]
        logits = self.logits(rows)
        return logits[:, columns] if self._keep else logits[:, : columns.stop - columns.start]

    def _compute_again(self, rows: slice, stats: RowStats) -> None:
        """Puts right, in `stats` and in what is kept, the rows whose offset was beyond the window."""
        assert self._total is not None
        if self.on_gpu:
            from fastgrpo_kernels.gpu.again import compute_again

            kept = self._narrow(self.logits(rows)) if self._keep else None
            compute_again(
                self.hidden[rows], self.weight, self.bias, self.target_ids[rows], self.transform.of(rows), kept,
                self._total, stats, WINDOW,
            )  # fmt: skip
            return
        beyond = ~(self._total.log().abs() <= WINDOW)  # NaN is
        for ids in beyond.nonzero()[:, 0].split(_ROWS_AGAIN) if beyond.any() else ():
            hidden, targets = self.hidden[rows][ids], self.target_ids[rows][ids]
            transform = self.transform.of(rows).of(ids)
            logits = hidden @ self.weight.T
            if self.bias is not None:
                logits += self.bias
            exact = self.primitives.row_stats(logits, targets, transform, stats.entropy is not None)
            for own, values in zip(stats, exact, strict=True):
                if own is not None and values is not None:
                    own[ids] = values
            sums = ExponentialSums.zeros(hidden, False)
            self.primitives.exponentials(logits, 0, targets, transform, exact.lse, sums, logits)
            self._total[ids] = torch.where(exact.lse.isfinite(), 1.0, sums.total)
            if self._keep:
                self.logits(rows)[ids] = logits

    def _clear(self, values: Tensor, rows: Tensor) -> None:  # [R, V], [R] bool
        """Fills rows with 0: 0 times what is not finite would not be."""
        if self.on_gpu:
            from fastgrpo_kernels.gpu.again import clear

            clear(values, rows)
        elif rows.any():
            values.masked_fill_(rows[:, None], 0.0)


class TiledHead(ExponentialHead):
    """A head for bfloat16 on a GPU: its exponentials come from the matmul's accumulators, and logits exist nowhere."""

    def __init__(self, inputs: LinearInputs, keep: bool, shape: "TileShape | None" = None) -> None:
        from fastgrpo_kernels.gpu.tiles import TileShape

        hidden, weight = inputs.hidden.contiguous(), inputs.weight.contiguous()
        chunk_tokens = inputs.chunk_tokens or (4096 if keep else 8192)
        super().__init__(inputs._replace(hidden=hidden, weight=weight, chunk_tokens=chunk_tokens), keep)
        self._shape = shape or TileShape()

    def _new_buffer(self) -> Tensor | None:
        return self.hidden.new_empty(self._longest(), len(self.weight)) if self._keep else None

    def _exponentials(self, rows: slice, offsets: Tensor, entropy: bool) -> ExponentialSums:
        from fastgrpo_kernels.gpu.tiles import linear_tiles

        return linear_tiles(
            self.hidden[rows], self.weight, self.bias, self.target_ids[rows], self.transform.of(rows), offsets,
            entropy, self.logits(rows) if self._keep else None, self._shape,
        )  # fmt: skip
