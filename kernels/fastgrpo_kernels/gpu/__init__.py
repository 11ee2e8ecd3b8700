"""The primitives as Triton kernels, for CUDA tensors of 16 or 32 bits.

No atomics: sums have a fixed order, so that a result is the same bit for bit every time.
"""

from .groups import group_advantages
from .rows import exponentials, row_gradient, row_stats
from .token_objective import token_objective

__all__ = ["exponentials", "group_advantages", "row_gradient", "row_stats", "token_objective"]
