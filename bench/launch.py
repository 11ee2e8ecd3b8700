"""What one launch of a kernel is beside its definition, and the numbers that launches are made of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Outcome = dict[str, Tensor]


@dataclass(frozen=True)
class Launch:
    """A launch of our kernel and its definition, both on the same numbers.

    ``ours`` gets the device. ``definition`` computes on the CPU in the dtype that it gets. Results of the same name are
    compared: a gradient with that of plain torch in ``dtype``, everything else with float32.
    """

    name: str
    kernels: Sequence[str]
    ours: Callable[[torch.device], Outcome]
    definition: Callable[[torch.dtype], Outcome]
    dtype: torch.dtype = torch.float32


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random numbers on the CPU, rounded to the dtype; the same for the same seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def some_target_ids(num_rows: int, vocabulary: int) -> Tensor:
    """Random target ids, with the first and the last id among them."""
    ids = torch.randint(vocabulary, (num_rows,), generator=torch.Generator().manual_seed(num_rows))
    ids[0] = vocabulary - 1
    ids[1:2] = 0
    return ids


def present(**values: Tensor | None) -> Outcome:
    return {name: value for name, value in values.items() if value is not None}
