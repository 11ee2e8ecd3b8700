"""The parts that subjects limited by memory share: copies of as many bytes, and their bars."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from bench.harness import free_cached
from bench.headlines import faster_than
from bench.kernel_subjects import Headline, Measured

EAGER = "eager torch"
COMPILED = "torch.compile"
LIMIT = "a copy of its bytes"


def compiled(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The function, compiled at its first call: the import of the compiler takes seconds, which other runs save."""

    @cache
    def made() -> Callable[[Any], Any]:
        return torch.compile(function, dynamic=False)

    return lambda inputs: made()(inputs)


def copy_of(num_bytes: int, device: torch.device) -> Callable[[], object]:
    """A copy whose reads and writes are ``num_bytes`` in all."""
    source = torch.ones(num_bytes // 8, device=device)
    target = torch.zeros_like(source)
    return lambda: target.copy_(source)


def headline(measured: Measured, mode: str, num_bytes: int) -> Headline:
    """The headline: on a CPU the speed beside eager torch's; on CUDA the share of the bandwidth of two copies."""
    if measured.device.type == "cpu":
        return [faster_than(measured, mode, EAGER, f"{mode}: {EAGER} / {{}}", ">= 3x")]
    row = measured.ours(mode)
    if not row:
        return [(mode, "did not run", ">= 80 %")]
    what, share = f"{mode}: {row['name']}", num_bytes / row["seconds"] / large_copy_bytes_per_s(measured.device)
    return [
        (f"{what}, share of a large copy's bandwidth", f"{share:.0%}", ">= 80 %"),
        (f"{what}, share of an equal copy's bandwidth", f"{1 / row['ratio']:.0%}", ">= 80 %"),
    ]


@cache  # the headline is made again after every row
def large_copy_bytes_per_s(device: torch.device) -> float:
    from bench.limits import copy_bytes_per_s

    bytes_per_s = copy_bytes_per_s(device)
    free_cached(device)
    return bytes_per_s
