"""The head that runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from .exponentials import ExponentialHead, TiledHead
from .head import Head, LinearInputs
from .logits import LogitsHead

_first_matmul: Literal["triton", "cublas", "auto"] = "auto"


@contextmanager
def first_matmul(choice: Literal["triton", "cublas", "auto"]) -> Iterator[None]:
    """Within the block this matmul makes the logits on a GPU: for tests, and for benchmarks that compare the two."""
    global _first_matmul
    before, _first_matmul = _first_matmul, choice
    try:
        yield
    finally:
        _first_matmul = before


def make_head(inputs: LinearInputs, *, gradient: bool, of_entropy: bool = False) -> Head:
    """The head that suits the device and the gradient that will be asked for: none, or one that may be of the entropy.

    Exponentials do not do where each log-probability is needed, as by the entropy's gradient, or each logit, as by a
    softcap's slope. On a GPU they are of bfloat16: float16's exponents end at e^11, and far from its offset an
    exponential summed in float32 is less exact than float32 logits.
    """
    device, dtype = inputs.hidden.device, inputs.hidden.dtype
    if inputs.transform.softcap or of_entropy:
        return LogitsHead(inputs)
    if device.type == "cpu":
        return ExponentialHead(inputs, gradient)
    if dtype == torch.bfloat16 or (dtype == torch.float16 and not gradient):
        return TiledHead(inputs, gradient) if _tiles_are_better(device, gradient) else ExponentialHead(inputs, gradient)
    return LogitsHead(inputs)


def _tiles_are_better(device: torch.device, gradient: bool) -> bool:
    """Whether the Triton matmul is expected to be faster: always where no gradient is asked for, for it stores nothing.

    Else on Hopper and later, where Triton's matmul is as fast as cuBLAS, and not on Ampere, where it is slower. Both
    are measurements of others (triton-lang/triton #6523), not ours.
    """
    if _first_matmul != "auto":
        return _first_matmul == "triton"
    return not gradient or torch.cuda.get_device_capability(device)[0] >= 9
