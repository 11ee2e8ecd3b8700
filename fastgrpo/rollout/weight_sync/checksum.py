"""A checksum of a tensor's bits: the checksums of its shards add up to it."""

import torch
from torch import Tensor

_ROW, _COLUMN, _START = 0x9E3779B97F4A7C15 - 2**64, 0xC2B2AE3D27D4EB4F - 2**64, 0x165667B19E3779F9
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int32}
"""The dtype of a word by element size. An element of eight bytes is two words: of the 64th bit a product modulo 2**64
would keep only whether the factor is odd."""
_ALIGNED_BYTES = 256  # rows of a multiple of 256 bytes are cut between words of four bytes by up to 64 shards
_CHUNK_WORDS = 1 << 22


def checksum(
    values: Tensor,  # [rows] or [..., columns], or a part of such a tensor
    first_row: int = 0,
    first_column: int = 0,
    num_columns: int | None = None,  # of the whole tensor; None: these are all
) -> int:
    """The sum over words of ``bits * (a * row + b * column + c)``, modulo 2**64; all dimensions but the last are rows.

    The checksums of disjoint parts add up to the checksum of the whole, and elements that change places change it. The
    bits are those of the dtype. A word has four bytes if every row of the whole tensor is a multiple of 256 bytes,
    which is faster for small elements. Otherwise a word is an element, or half of an element of eight bytes.
    """
    matrix = values.detach().reshape(-1, 1) if values.dim() < 2 else values.detach().flatten(0, -2)
    size = matrix.element_size()
    is_aligned = (num_columns or matrix.shape[1]) * size % _ALIGNED_BYTES == 0
    bits = matrix.view(torch.int32 if is_aligned and matrix.shape[1] else _BITS[size])
    columns = _line(first_column * size // bits.element_size(), bits.shape[1], _COLUMN, values.device) + _START
    total = torch.zeros((), dtype=torch.int64, device=values.device)
    step = max(1, _CHUNK_WORDS // max(1, bits.shape[1]))
    for start in range(0, len(bits), step):
        part = bits[start : start + step].long()
        rows = _line(first_row + start, len(part), _ROW, values.device)
        total += (part * columns).sum() + (part.sum(1) * rows).sum()
    return int(total)


def wrapped(value: int) -> int:
    """The same modulo 2**64, as int64 has it."""
    return (value + 2**63) % 2**64 - 2**63


def _line(first: int, count: int, factor: int, device: torch.device) -> Tensor:
    """``factor * (first + i)`` for each i below count, modulo 2**64."""
    return torch.arange(first, first + count, device=device) * factor
