"""The head that keeps logits: for the entropy's gradient, softcaps, and dtypes that cannot keep exponentials."""

from torch import Tensor

from ..primitives import RowStats
from .head import Head, LinearInputs, LogitGradient, chunks
from .matmuls import multiply


class LogitsHead(Head):
    """A head that keeps a chunk's logits in float32 (float64 for float64), with two passes over them."""

    def __init__(self, inputs: LinearInputs) -> None:
        super().__init__(inputs)
        self._buffer = self._rows_of(len(self.weight))

    def forward(self, rows: slice, entropy: bool) -> RowStats:
        self.compute(rows)
        return self.primitives.row_stats(self.logits(rows), self.target_ids[rows], self.transform.of(rows), entropy)

    def recompute(self, rows: slice, lse: Tensor) -> None:
        self.compute(rows)

    def compute(self, rows: slice) -> None:
        """The logits of these rows, into the buffer."""
        logits, hidden = self.logits(rows), self.hidden[rows]
        for columns in chunks(len(self.weight), self._columns):
            multiply(hidden, self.weight[columns].T, logits[:, columns])
        if self.bias is not None:
            logits.add_(self.bias)

    def gradient(
        self, rows: slice, stats: RowStats, grad_logprobs: Tensor, grad_entropy: Tensor | None
    ) -> LogitGradient:
        logits = self.logits(rows)
        out, transform = self._narrow(logits), self.transform.of(rows)
        self.primitives.row_gradient(logits, self.target_ids[rows], transform, stats, grad_logprobs, grad_entropy, out)
        return LogitGradient(out)
