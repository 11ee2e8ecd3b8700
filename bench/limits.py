"""A device's peaks, measured in the same process: matmul FLOP/s and memory bytes/s; and the limits from them."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from bench.harness import free_cached, timed
from bench.shapes import Shape


@dataclass(frozen=True)
class Peak:
    """``flops_per_s`` of a square matmul in ``dtype`` on random data; ``bytes_per_s`` of a copy, reads and writes."""

    dtype: str
    itemsize: int
    flops_per_s: float
    bytes_per_s: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def measured_peak(device: torch.device, dtype: torch.dtype) -> Peak:
    """Both peaks; the memory that measuring them took is freed."""
    peak = Peak(
        dtype=str(dtype).removeprefix("torch."),
        itemsize=dtype.itemsize,
        flops_per_s=matmul_flops_per_s(device, dtype),
        bytes_per_s=copy_bytes_per_s(device),
    )
    free_cached(device)
    return peak


def matmul_flops_per_s(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a square matmul that fills the device."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(a)
    matmul = timed(lambda: torch.mm(a, b, out=product), device, repeats=10, budget_s=3.0)
    return 2 * size**3 / matmul.median_s


def copy_bytes_per_s(device: torch.device) -> float:
    """Bytes/s read and written by a copy that is larger than any cache."""
    copied_bytes = 2**31 if device.type == "cuda" else 2**27
    source = torch.ones(copied_bytes // 4, device=device)
    target = torch.zeros_like(source)
    copy = timed(lambda: target.copy_(source), device, repeats=10, budget_s=3.0)
    return 2 * copied_bytes / copy.median_s


def decode_limit(shape: Shape, peak: Peak, num_sequences: int, context: int) -> float:
    """Tokens/s of decoding, by memory or by FLOP/s, whichever is slower.

    A token of all sequences reads the weights once and the keys and values of every sequence, and multiplies with all
    weights.
    """
    read_bytes = peak.itemsize * shape.num_parameters + num_sequences * context * shape.kv_bytes_per_token(
        peak.itemsize
    )
    weights = shape.num_layers * shape.layer_matmul_weights + shape.vocabulary * shape.width
    attention = 4 * shape.num_layers * shape.query_width * context
    compute_s = num_sequences * (2 * weights + attention) / peak.flops_per_s
    return num_sequences / max(read_bytes / peak.bytes_per_s, compute_s)
