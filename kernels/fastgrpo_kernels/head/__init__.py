"""The LM head over chunks of tokens: logits of one chunk exist at a time, in some form, and become their own gradient.

`LogitsHead` keeps logits, `ExponentialHead` their exponentials, `TiledHead` as well, which a Triton matmul gives.
"""

from fastgrpo_kernels.head.choice import first_matmul, make_head
from fastgrpo_kernels.head.gradients import HeadGradients, empty_gradients
from fastgrpo_kernels.head.head import Head, LinearInputs

__all__ = ["Head", "HeadGradients", "LinearInputs", "empty_gradients", "first_matmul", "make_head"]
