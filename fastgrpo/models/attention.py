"""Attention over packed rows, registered with transformers under names of our own.

Every implementation gets ``query, key, value`` as [1, heads, U, E], and a ``PackedLayout`` as the keyword argument
``layout``, which transformers passes through its models.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

from fastgrpo.models.packed_batch import SharedPrompts

HALF = (torch.bfloat16, torch.float16)
# torch 2.10 has is_causal and no scale, 2.11 has window_size and scale, 2.12 also has enable_gqa.
_VARLEN_OPTIONS = frozenset(inspect.signature(varlen_attn).parameters)
IMPLEMENTATIONS = {"varlen": "fastgrpo_varlen", "flash_attn": "fastgrpo_flash_attn", "padded": "fastgrpo_padded"}
"""Setting -> our name. The settings ``sdpa`` and ``eager`` are transformers' own names; these read ``position_ids``."""


def choose_attention(setting: str, device: torch.device, dtype: torch.dtype) -> str:
    """The transformers name of an attention setting; ``auto`` looks at device, compute dtype and what is installed.

    Raises ValueError for a setting that cannot run there.
    """
    if setting == "auto" and (device.type == "cpu" or dtype not in HALF):
        setting = "padded"
    if setting == "auto":
        setting = "flash_attn" if _flash_attn_installed() else "varlen"
    if setting in ("varlen", "flash_attn") and dtype not in HALF and device.type != "cpu":
        raise ValueError(f"--model.attention {setting} computes in bfloat16, not in {dtype}: use padded, sdpa or eager")
    if device.type == "cpu" and setting in ("varlen", "flash_attn"):
        raise ValueError(f"--model.attention {setting} has no CPU kernel: use padded, sdpa or eager on CPU")
    if setting == "flash_attn" and not _flash_attn_installed():
        raise ValueError("--model.attention flash_attn needs the package flash-attn: install it, or use varlen")
    return IMPLEMENTATIONS.get(setting, setting)


def can_share_prompts(implementation: str) -> bool:
    """Whether an implementation can compute a prompt once for several responses; transformers' own ones cannot."""
    return implementation in IMPLEMENTATIONS.values()


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


def padded_attention(
    module: torch.nn.Module,
    query: Tensor,  # [1, H, U, E]
    key: Tensor,  # [1, K, U, E]
    value: Tensor,  # [1, K, U, E]
    attention_mask: Tensor | None,
    *,
    layout: PackedLayout,
    scaling: float,
    sliding_window: int | None = None,
    **extra: Any,
) -> tuple[Tensor, None]:  # [1, U, H, E]
    """Attention with each sequence in a padded row of its own: exact, and far cheaper on a CPU than a [T, T] mask."""
    _refuse_unsupported(extra)
    padding = layout.padding(query.shape[2])
    heads, width = query.shape[1], query.shape[3]
    repeats = heads // key.shape[1]

    def pad(rows: Tensor) -> Tensor:  # [1, heads, U, E] -> [S, heads, L, E]
        places = rows[0].transpose(0, 1).index_select(0, padding.row_of_place)
        return places.unflatten(0, (padding.num_sequences, padding.num_columns)).transpose(1, 2)

    q, k, v = pad(query), pad(key), pad(value)
    if repeats > 1:
        k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
    if sliding_window is not None and layout.max_seqlen > sliding_window:
        columns = torch.arange(layout.max_seqlen, device=query.device)
        distance = columns[:, None] - columns
        window = (distance >= 0) & (distance < sliding_window)
        output = F.scaled_dot_product_attention(q, k, v, attn_mask=window, scale=scaling)
    else:
        output = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling)
    output = output.transpose(1, 2).reshape(-1, heads, width)
    return output.index_select(0, padding.place_of_row).unsqueeze(0), None


Kernel = Callable[[Tensor, Tensor, Tensor, PackedLayout, float, int | None], Tensor]
"""(query, key, value, each [T, heads, E]; layout, scale, sliding window) -> [T, H, E]."""


def packed(kernel: Kernel) -> Callable[..., tuple[Tensor, None]]:
    """The transformers function that computes attention with a variable-length kernel."""

    def attention(
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        layout: PackedLayout,
        scaling: float,
        sliding_window: int | None = None,
        **extra: Any,
    ) -> tuple[Tensor, None]:
        _refuse_unsupported(extra)
        q, k, v = (layout.expand(t[0]) for t in (query, key, value))
        return layout.select(kernel(q, k, v, layout, scaling, sliding_window)).unsqueeze(0), None

    return attention


@packed
def varlen_attention(q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout, scale: float, window: int | None) -> Tensor:
    """torch's own variable-length attention; no package to build.

    Keys and values keep their smaller number of heads: the kernel can read them so in every version of torch, and from
    2.12 on it has to be told.
    """
    if "window_size" in _VARLEN_OPTIONS:
        options: dict[str, Any] = {"window_size": (-1 if window is None else window - 1, 0)}
    else:
        if window is not None and layout.max_seqlen > window:
            raise ValueError("a sliding window needs torch 2.11 or newer, or --model.attention flash_attn")
        options = {"is_causal": True}
    if "enable_gqa" in _VARLEN_OPTIONS:
        options["enable_gqa"] = q.shape[1] != k.shape[1]
    if "scale" in _VARLEN_OPTIONS:
        options["scale"] = scale
    elif abs(scale * q.shape[-1] ** 0.5 - 1) > 1e-6:
        raise ValueError(f"attention scale {scale} needs torch 2.11 or newer, or --model.attention flash_attn")
    bounds, longest = layout.cu_seqlens, layout.max_seqlen
    output = varlen_attn(q, k, v, bounds, bounds, longest, longest, **options)
    assert isinstance(output, Tensor)  # it would be a tuple if more were asked for
    return output


@packed
def flash_attention(q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout, scale: float, window: int | None) -> Tensor:
    """The flash-attn package's variable-length kernel."""
    from flash_attn import flash_attn_varlen_func

    size = (-1, -1) if window is None else (window - 1, 0)
    bounds, longest = layout.cu_seqlens, layout.max_seqlen
    return flash_attn_varlen_func(
        q, k, v, bounds, bounds, longest, longest, softmax_scale=scale, causal=True, window_size=size
    )


def _refuse_unsupported(extra: dict[str, Any]) -> None:
    """Raises ValueError for an option that would change the result and that packed attention does not have."""
    for name in ("softcap", "s_aux", "position_bias"):
        if extra.get(name) is not None:
            raise ValueError(f"this model's attention uses {name!r}, which packed attention lacks: use sdpa or eager")
    if extra.get("dropout"):
        raise ValueError("attention dropout makes logprobs random: set attention_dropout to 0 in the model's config")


def _flash_attn_installed() -> bool:
    from importlib.util import find_spec

    return find_spec("flash_attn") is not None


def register(name: str, attention: Callable[..., tuple[Tensor, None]]) -> None:
    """Makes an attention function selectable as ``attn_implementation=name``.

    No mask is registered under the name, because the layout is enough. Then transformers makes no mask and does not
    search ``position_ids`` for packed sequences, for which the host would wait for the GPU.
    """
    AttentionInterface.register(name, attention)


register("fastgrpo_padded", padded_attention)
register("fastgrpo_varlen", varlen_attention)
register("fastgrpo_flash_attn", flash_attention)
