"""The implementation that runs, by device.

CUDA tensors always run the Triton kernels. CPU tensors run the native library, or, where it was not built, plain torch
with a warning. Any other device is refused.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Literal, cast

import torch

from .primitives import Primitives

Backend = Literal["gpu", "native", "plain"]

_forced: Backend | None = None


def backend_for(device: torch.device) -> Backend:
    """Name of the module that has this device's primitives."""
    if _forced is not None:
        return _forced
    if device.type == "cuda":
        return "gpu"
    if device.type == "cpu":
        return "native" if native_is_built() else "plain"
    raise ValueError(f"fastgrpo_kernels runs on CUDA and CPU tensors, got one on {device}")


def primitives_for(device: torch.device) -> Primitives:
    return cast(Primitives, import_module(f".{backend_for(device)}", __package__))


@contextmanager
def forced(backend: Backend) -> Iterator[None]:
    """Within the block every op runs on this backend: for tests and benchmarks that compare them."""
    global _forced
    before, _forced = _forced, backend
    try:
        yield
    finally:
        _forced = before


@contextmanager
def running_on(tensor: torch.Tensor) -> Iterator[Primitives]:
    """The primitives for this tensor; within the block its device is current and autocast is off."""
    with torch.cuda.device_of(tensor), torch.autocast(tensor.device.type, enabled=False):
        yield primitives_for(tensor.device)


@cache
def native_is_built() -> bool:
    """Whether the library was built; if not, a warning, once, gives the command that builds it."""
    from .native import LIBRARY

    if not LIBRARY.exists():
        here = Path(__file__).with_name("build.py").exists()  # not in a build for the hub
        advice = "`python -m fastgrpo_kernels.build` builds it" if here else "the hub's variants for CPUs have it"
        warnings.warn(
            f"fastgrpo_kernels runs in plain torch on the CPU, slower, because {LIBRARY.name} was not built: {advice}",
            stacklevel=2,
        )
    return LIBRARY.exists()
