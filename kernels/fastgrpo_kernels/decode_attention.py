"""Attention of the next token of each sequence over a cache of keys and values: a decode loop's, on a CPU."""

import torch
from torch import Tensor

from . import plain
from .dispatch import backend_for
from .primitives import DecodeStep

DTYPES = (torch.float32, torch.bfloat16)


def has_decode_attention(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `decode_attention` runs in C++ there, which is faster than torch's attention under a mask."""
    return dtype in DTYPES and backend_for(device) == "native"


def decode_attention(
    query: Tensor,  # [B, H, E]
    key: Tensor,  # [B, K, E]
    value: Tensor,  # [B, K, F]
    keys: Tensor,  # [B, K, C, E]
    values: Tensor,  # [B, K, C, F]
    lengths: Tensor,  # [B] int64
    *,
    scale: float | None = None,
    window: int | None = None,
) -> Tensor:  # [B, H, F]
    """The attention of each sequence's new token over its ``lengths`` tokens in the cache and itself.

    Writes the token's key and value into the cache at ``lengths``, which stay as they are. ``scale`` is 1/sqrt(E)
    where it is None, and ``window`` the most tokens that are seen, the new one among them. Sums are in float32. Tensors
    are contiguous, without gradients, in one dtype; free places of the cache hold finite numbers.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    step = DecodeStep(query, key, value, keys, values, lengths)
    if has_decode_attention(query.device, query.dtype):
        from . import native

        return native.decode_attention(step, scale, window)
    return plain.decode_attention(step, scale, window)
