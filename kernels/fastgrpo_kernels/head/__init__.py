"""The LM head over chunks of tokens: logits of one chunk exist at a time, in some form, and become their own gradient.

`LogitsHead` keeps logits, `ExponentialHead` their exponentials, `TiledHead` as well, which a Triton matmul gives.
"""

from .choice import first_matmul, make_head
from .gradients import HeadGradients, empty_gradients
from .head import Head, LinearInputs

__all__ = ["Head", "HeadGradients", "LinearInputs", "empty_gradients", "first_matmul", "make_head"]
