"""Attention over packed rows, registered with transformers under names of our own.

Every implementation sees ``query, key, value`` as [1, heads, T, E] and the packed layout in the keyword arguments that
transformers hands through its models (``cu_seq_lens_q`` and ``max_length_q``, flash-attention's meaning).
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

IMPLEMENTATIONS = {"varlen": "fastgrpo_varlen", "flash_attn": "fastgrpo_flash_attn", "padded": "fastgrpo_padded"}
"""Our names by the setting's value; ``sdpa`` and ``eager`` are transformers' own, which read ``position_ids``."""


def choose_attention(setting: str, device: torch.device) -> str:
    """The transformers name of an attention setting; ``auto`` is decided by device and what is installed.

    Raises ValueError for a setting that the device cannot run.
    """
    if setting == "auto":
        setting = "padded" if device.type == "cpu" else ("flash_attn" if _flash_attn_installed() else "varlen")
    if device.type == "cpu" and setting in ("varlen", "flash_attn"):
        raise ValueError(f"--model.attention {setting} has no CPU kernel: use padded, sdpa or eager on CPU")
    if setting == "flash_attn" and not _flash_attn_installed():
        raise ValueError("--model.attention flash_attn needs the package flash-attn: install it, or use varlen")
    return IMPLEMENTATIONS.get(setting, setting)


def packed_kwargs(cu_seqlens: Tensor, max_seqlen: int) -> dict[str, Any]:
    """Keyword arguments of a transformers model that describe packed rows."""
    return {
        "cu_seq_lens_q": cu_seqlens,
        "cu_seq_lens_k": cu_seqlens,
        "max_length_q": max_seqlen,
        "max_length_k": max_seqlen,
    }


def padded_attention(
    module: torch.nn.Module,
    query: Tensor,  # [1, H, T, E]
    key: Tensor,  # [1, K, T, E]
    value: Tensor,  # [1, K, T, E]
    attention_mask: Tensor | None,
    *,
    cu_seq_lens_q: Tensor,  # [S + 1]
    max_length_q: int,
    scaling: float,
    sliding_window: int | None = None,
    **extra: Any,
) -> tuple[Tensor, None]:  # [1, T, H, E]
    """Each sequence becomes a padded row of its own for the attention alone: exact, and on CPU far cheaper than a
    block-diagonal [T, T] mask."""
    _refuse_unsupported(extra)
    lengths = cu_seq_lens_q.diff()
    columns = torch.arange(max_length_q, device=query.device)
    row_of_slot = cu_seq_lens_q[:-1, None] + torch.minimum(columns, lengths[:, None] - 1)  # [S, L]
    repeats = query.shape[1] // key.shape[1]
    q, k, v = (t[0][:, row_of_slot].transpose(0, 1) for t in (query, key, value))  # [S, heads, L, E]
    if repeats > 1:
        k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
    if sliding_window is not None and max_length_q > sliding_window:
        distance = columns[:, None] - columns
        window = (distance >= 0) & (distance < sliding_window)
        output = F.scaled_dot_product_attention(q, k, v, attn_mask=window, scale=scaling)
    else:
        output = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling)
    return output.transpose(1, 2)[columns < lengths[:, None]].unsqueeze(0), None


def varlen_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    scaling: float,
    sliding_window: int | None = None,
    **extra: Any,
) -> tuple[Tensor, None]:
    """torch's own variable-length attention; no package to build."""
    from torch.nn.attention.varlen import varlen_attn

    _refuse_unsupported(extra)
    q, k, v = (t[0].transpose(0, 1).contiguous() for t in (query, key, value))  # [T, heads, E]
    if "window_size" in inspect.signature(varlen_attn).parameters:
        causal: dict[str, Any] = {"window_size": (-1 if sliding_window is None else sliding_window - 1, 0)}
        causal["enable_gqa"] = q.shape[1] != k.shape[1]
    else:  # torch < 2.12
        if sliding_window is not None and max_length_q > sliding_window:
            raise ValueError("a sliding window needs torch 2.12 or newer, or --model.attention flash_attn")
        causal = {"is_causal": True}
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    _refuse_other_scale(scaling, q.shape[-1], "scale" in inspect.signature(varlen_attn).parameters)
    if "scale" in inspect.signature(varlen_attn).parameters:
        causal["scale"] = scaling
    output = varlen_attn(q, k, v, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q, **causal)
    assert isinstance(output, Tensor)  # a tuple only when asked for more
    return output.unsqueeze(0), None


def flash_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    scaling: float,
    sliding_window: int | None = None,
    **extra: Any,
) -> tuple[Tensor, None]:
    """The flash-attn package's variable-length kernel."""
    from flash_attn import flash_attn_varlen_func  # pyright: ignore[reportMissingImports]

    _refuse_unsupported(extra)
    q, k, v = (t[0].transpose(0, 1).contiguous() for t in (query, key, value))
    window = (-1, -1) if sliding_window is None else (sliding_window - 1, 0)
    output = flash_attn_varlen_func(
        q, k, v, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q,
        softmax_scale=scaling, causal=True, window_size=window,
    )  # fmt: skip
    return output.unsqueeze(0), None


def _refuse_unsupported(extra: dict[str, Any]) -> None:
    """An option that changes the result must not be dropped in silence."""
    for name in ("softcap", "s_aux", "position_bias"):
        if extra.get(name) is not None:
            raise ValueError(f"this model's attention uses {name!r}, which packed attention lacks: use sdpa or eager")
    if extra.get("dropout"):
        raise ValueError("attention dropout makes logprobs random: set attention_dropout to 0 in the model's config")


def _refuse_other_scale(scaling: float, head_width: int, has_argument: bool) -> None:
    if not has_argument and abs(scaling * head_width**0.5 - 1) > 1e-6:
        raise ValueError(f"attention scale {scaling} needs torch 2.12 or newer, or --model.attention flash_attn")


def _flash_attn_installed() -> bool:
    from importlib.util import find_spec

    return find_spec("flash_attn") is not None


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """The packed layout says it all."""


def register(name: str, attention: Callable[..., tuple[Tensor, None]]) -> None:
    """Makes an attention function selectable as ``attn_implementation=name``, with no mask built for it."""
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, _no_mask)


register("fastgrpo_padded", padded_attention)
register("fastgrpo_varlen", varlen_attention)
register("fastgrpo_flash_attn", flash_attention)
