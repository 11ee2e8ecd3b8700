"""How packed tokens lie, and how the attention of a model's layers gets to know it."""

import inspect
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastgrpo.models.packed_batch import SharedPrompts


class Padding(NamedTuple):
    """The indices that turn packed rows into a rectangle of sequences, and back."""

    num_sequences: int
    num_columns: int
    row_of_place: Tensor  # [S * L] int64, the row that is read at each place; after a sequence's end its last token
    place_of_row: Tensor  # [U] int64, the place where each row is read from afterwards

    @classmethod
    def of(cls, cu_seqlens: Tensor, max_seqlen: int, num_tokens: int, shared: SharedPrompts | None) -> "Padding":
        """The padding of T packed tokens. No size is read from the device."""
        starts, lengths = cu_seqlens[:-1].long(), cu_seqlens.diff().long()
        columns = torch.arange(max_seqlen, device=cu_seqlens.device)
        tokens = starts[:, None] + torch.minimum(columns, lengths[:, None] - 1)
        every = torch.arange(num_tokens, device=cu_seqlens.device)
        sequence = torch.searchsorted(cu_seqlens[1:].long(), every, right=True)
        places = sequence * max_seqlen + every - starts[sequence]
        if shared is not None:
            tokens, places = shared.expand[tokens], places[shared.select]
        return cls(len(lengths), max_seqlen, tokens.flatten(), places)


class PackedLayout:
    """How T tokens are packed, and which U <= T rows the model computes.

    This is not a dataclass, because FSDP2 copies dataclasses that pass through a wrapped layer: the padding would be
    computed in every layer.
    """

    def __init__(
        self,
        cu_seqlens: Tensor,  # [S + 1]
        max_seqlen: int,
        shared: SharedPrompts | None = None,
    ) -> None:
        self.cu_seqlens, self.max_seqlen, self.shared = cu_seqlens, max_seqlen, shared
        self._padding: Padding | None = None

    def padding(self, num_rows: int) -> Padding:
        """The padding of the U rows, computed once for all layers; before the first layer if layers are compiled."""
        if self._padding is None:
            num_tokens = num_rows if self.shared is None else len(self.shared.expand)
            self._padding = Padding.of(self.cu_seqlens, self.max_seqlen, num_tokens, self.shared)
        return self._padding

    def expand(self, rows: Tensor) -> Tensor:  # [heads, U, E] -> [T, heads, E]
        rows = rows.transpose(0, 1)
        return rows.contiguous() if self.shared is None else rows.index_select(0, self.shared.expand)

    def select(self, tokens: Tensor) -> Tensor:  # [T, heads, E] -> [U, heads, E]
        return tokens if self.shared is None else tokens.index_select(0, self.shared.select)


class LayoutHolder:
    """What all modules of a model can read: the layout of the tokens that are in it.

    A layout stays valid until the next forward pass, because layers that recompute their activations read it again in
    the backward pass, on a GPU from another thread.
    """

    layout: PackedLayout | None = None
    kv: Any = None  # of a model that decodes: the keys and values of earlier tokens


def hold_layout(model: nn.Module) -> LayoutHolder:
    """The holder that every module of the model has from now on: not all models hand keyword arguments on."""
    holder = LayoutHolder()
    for module in model.modules():
        module._layout_holder = holder  # type: ignore[assignment]
    return holder


def takes_layout(decoder: nn.Module) -> bool:
    """Whether a decoder can be given a layout as a keyword argument, which layers that are compiled read best."""
    kinds = {p.kind for p in inspect.signature(decoder.forward).parameters.values()}
    return inspect.Parameter.VAR_KEYWORD in kinds


def layout_of(module: nn.Module, named: dict[str, Any]) -> PackedLayout:
    """The layout that an attention module was given as the keyword argument ``layout``, which is taken out of
    ``named``, or else the one that is held for its model."""
    layout = named.pop("layout", None)
    if layout is None:
        layout = _held_layout(module)
    assert isinstance(layout, PackedLayout), "a forward pass over packed tokens without a layout"
    return layout


@torch.compiler.disable
def _held_layout(module: nn.Module) -> PackedLayout | None:
    """Compiled code leaves this alone: it would be compiled anew for every length."""
    return held_by(module).layout


def held_by(module: nn.Module) -> LayoutHolder:
    """The holder of a module's model."""
    holder = getattr(module, "_layout_holder", None)
    assert isinstance(holder, LayoutHolder), "attention over packed tokens in a model that holds no layout"
    return holder
