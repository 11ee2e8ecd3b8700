"""Matmuls that return what they accumulated, and not what their inputs' dtype holds of it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def sums_in_float32() -> Iterator[None]:
    """Within the block cuBLAS adds up parts of a long sum in float32: over a vocabulary bfloat16 would lose digits."""
    settings = torch.backends.cuda.matmul
    before = settings.allow_bf16_reduced_precision_reduction
    settings.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        settings.allow_bf16_reduced_precision_reduction = before


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
