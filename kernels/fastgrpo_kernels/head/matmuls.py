"""Matmuls that return what they accumulated, and not what their inputs' dtype holds of it."""

import torch
from torch import Tensor


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
