"""Whether the engines hold the trainer's weights, bit for bit."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from fastgrpo.rollout.weight_sync.checksum import checksum, wrapped


class WeightMismatch(RuntimeError):
    """An engine does not hold the weights that it was given; the message names the first that differs."""


def with_checksums(
    weights: Iterable[tuple[str, Tensor]], dtype: torch.dtype, into: dict[str, int]
) -> Iterator[tuple[str, Tensor]]:
    """The same weights, whose checksums in the engine's dtype are noted on their way."""
    for name, value in weights:
        into[name] = checksum(value.to(dtype))
        yield name, value


def added(shards: Iterable[dict[str, int]]) -> dict[str, int]:
    """The checksums of whole tensors, summed from those of their parts; sums wrap as int64 does."""
    total: dict[str, int] = {}
    for part in shards:
        for name, value in part.items():
            total[name] = wrapped(total.get(name, 0) + value)
    return total


def require_equal(ours: dict[str, int], theirs: dict[str, int], engine: str) -> None:
    """Raises WeightMismatch unless both sides have the same names with the same checksums."""
    for name in ours.keys() | theirs.keys():
        if name not in theirs or name not in ours:
            where, other = ("the trainer", engine) if name in ours else (engine, "the trainer")
            raise WeightMismatch(f"the weight {name} of {where} is unknown to {other}")
    different = [name for name in ours if ours[name] != theirs[name]]
    if different:
        raise WeightMismatch(
            f"after a sync the weight {different[0]} of {engine} differs from the trainer's, and so do "
            f"{len(different) - 1} of {len(ours) - 1} others. Engine and trainer are of different models, the engine "
            f"changed its weights after loading, or --rollout.dtype is not what it computes in"
        )
