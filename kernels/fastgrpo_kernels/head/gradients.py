"""The gradients of hidden, weight and bias, added up chunk by chunk.

Sums over a chunk and over chunks are float32, or float64 for float64 inputs. The matmuls are cuBLAS's, on a CPU MKL's.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..primitives import statistics_dtype
from .head import Head, LogitGradient
from .matmuls import add_product, multiply


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

    def add(self, rows: slice, gradient: LogitGradient) -> None:
        """Adds the gradient of a chunk's logits, by two matmuls; on a CPU of the rows between those that have none."""
        values, factors = gradient
        if factors is not None and not factors.is_cuda:
            first, last = _first_and_last(factors)
            self.skip(slice(rows.start, rows.start + first))
            self.skip(slice(rows.start + last, rows.stop))
            rows = slice(rows.start + first, rows.start + last)
            values, factors = values[first:last], factors[first:last]
        if self.hidden is not None:
            product = self._of_hidden(values)
            if factors is not None:
                scale(product, factors, out=self.hidden[rows])
            else:
                self.hidden[rows] = product
        if self.weight is not None:
            hidden = self.head.hidden[rows]
            if factors is not None:
                hidden = scale(hidden, factors, out=torch.empty_like(hidden))
            if self._weight_is_empty:
                multiply(values.T, hidden, self.weight)
                self._weight_is_empty = False
            else:
                add_product(values.T, hidden, self.weight)
        if self.bias is not None:
            self.bias += self._of_bias(values, factors)

    def _of_hidden(
        self, values: Tensor
    ) -> Tensor:  # [R, V] -> [R, D] as wide as the statistics: rounded once, at the end
        if not values.is_cuda:  # a tenth faster with the few rows of a chunk as columns
            return torch.mm(self.head.weight.T, values.T).T
        product = self.head.hidden.new_empty(len(values), self.head.hidden.shape[1], dtype=self.head.statistics_dtype)
        multiply(values, self.head.weight, product)
        return product

    def _of_bias(self, values: Tensor, factors: Tensor | None) -> Tensor:  # [R, V], [R] -> [V]
        assert self.bias is not None
        if factors is None:
            return values.sum(0, dtype=self.bias.dtype)
        weighted = self.bias.new_empty(1, len(self.bias))  # without the product of all, which is as large as the logits
        multiply(factors[None].to(values.dtype), values, weighted)
        return weighted[0]

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


def scale(rows: Tensor, factors: Tensor, out: Tensor) -> Tensor:  # [R, D], [R]
    """Each row times its factor, 0 where that is 0 whatever the row is."""
    return torch.mul(rows, factors[:, None], out=out).masked_fill_((factors == 0)[:, None], 0.0)


def _first_and_last(factors: Tensor) -> tuple[int, int]:
    """The range of the rows whose factor is not 0: from, and up to but without."""
    used = factors.nonzero()
    return (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 0)
