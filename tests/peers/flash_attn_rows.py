"""flash-attn's functions that move rows about, in plain torch, for peers that import them on a CPU too."""

import sys
from types import ModuleType

import torch
from torch import Tensor


def stand_in_for_flash_attn() -> None:
    """Puts the functions where the peers import them from.

    flash-attn does not build without CUDA; of it the peers import four functions that move rows about.
    They come as modules of their own: a package of that name would make transformers use it.
    """

    def unpad_input(values: Tensor, mask: Tensor) -> tuple:
        indices, lengths = mask.flatten().nonzero().flatten(), mask.sum(1)
        starts = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).int()
        return values.flatten(0, 1)[indices], indices, starts, int(lengths.max()), lengths

    def pad_input(values: Tensor, indices: Tensor, batch: int, length: int) -> Tensor:
        padded = values.new_zeros(batch * length, *values.shape[1:])
        return padded.index_copy(0, indices, values).unflatten(0, (batch, length))

    padding, distributed = ModuleType("flash_attn.bert_padding"), ModuleType("flash_attn.utils.distributed")
    padding.unpad_input, padding.pad_input = unpad_input, pad_input
    padding.index_first_axis = lambda values, indices: values[indices]
    padding.rearrange = lambda values, _: values.flatten(0, 1)  # "b s ... -> (b s) ..." in all their calls
    distributed.all_gather = None  # of ring attention
    sys.modules.setdefault(padding.__name__, padding)
    sys.modules.setdefault(distributed.__name__, distributed)
