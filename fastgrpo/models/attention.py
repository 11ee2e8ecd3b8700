"""Attention over packed rows, registered with transformers under names of our own.

Every implementation gets ``query, key`` as [1, heads, U, E] and ``value`` as [1, heads, U, F], and finds the
``PackedLayout`` by `layout_of`.
"""

import contextlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, PreTrainedModel

from fastgrpo.models.attention_options import Options, attend, lacks, options_of, require_options
from fastgrpo.models.decoder import decoder_of
from fastgrpo.models.layout import PackedLayout, layout_of

HALF = (torch.bfloat16, torch.float16)
# torch 2.10 has is_causal and no scale, 2.11 has window_size and scale, 2.12 also has enable_gqa.
_VARLEN_OPTIONS = frozenset(inspect.signature(varlen_attn).parameters)
IMPLEMENTATIONS = {"varlen": "fastgrpo_varlen", "flash_attn": "fastgrpo_flash_attn", "padded": "fastgrpo_padded"}
"""Setting -> our name. The settings ``sdpa`` and ``eager`` are transformers' own names; these read ``position_ids``."""


def choose_attention(
    setting: str, device: torch.device, dtype: torch.dtype, beyond_plain: frozenset[str] = frozenset()
) -> str:
    """The transformers name of an attention setting; ``auto`` looks at device, compute dtype, what is installed, and
    what the model asks for beyond plain attention (`asked_of`).

    Raises ValueError for a setting that cannot run there, or cannot compute what the model asks for.
    """
    if setting == "auto":
        fast = ["flash_attn"] * _flash_attn_installed() + ["varlen"] if device.type != "cpu" and dtype in HALF else []
        setting = next(s for s in (*fast, "padded") if not lacks(s) & beyond_plain)
    require_options(setting, beyond_plain)
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


def padded_attention(
    module: torch.nn.Module,
    query: Tensor,  # [1, H, U, E]
    key: Tensor,  # [1, K, U, E]
    value: Tensor,  # [1, K, U, F]
    attention_mask: Tensor | None,
    **named: Any,
) -> tuple[Tensor, None]:  # [1, U, H, F]
    """Attention with each sequence in a padded row of its own: exact, and far cheaper on a CPU than a [T, T] mask."""
    layout = layout_of(module, named)
    options = options_of(query, attention_mask, named)
    padding = layout.padding(query.shape[2])
    repeats = query.shape[1] // key.shape[1]

    def pad(rows: Tensor) -> Tensor:  # [1, heads, U, E] -> [S, heads, L, E]
        places = rows[0].transpose(0, 1).index_select(0, padding.row_of_place)
        return places.unflatten(0, (padding.num_sequences, padding.num_columns)).transpose(1, 2)

    q, k, v = pad(query), pad(key), pad(value)
    if repeats > 1:
        k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
    if query.device.type == "cpu" and query.dtype in HALF:  # torch's backward pass in these is slow there
        q, k, v = q.float(), k.float(), v.float()
    window = options.window or layout.max_seqlen
    if options.beyond_plain:
        sinks = None if options.sinks is None else options.sinks[:, None, None]
        output = attend(q, k, v, _seen(layout.max_seqlen, window, query.device), options, sinks)
    elif window < layout.max_seqlen:
        seen = _seen(layout.max_seqlen, window, query.device)
        output = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=options.scale)
    else:
        output = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=options.scale)
    output = output.transpose(1, 2).flatten(0, 1).to(query.dtype)
    return output.index_select(0, padding.place_of_row).unsqueeze(0), None


def _seen(length: int, window: int, device: torch.device) -> Tensor:  # [L, L] bool
    """Where a query looks: at itself and earlier tokens, so many in all."""
    columns = torch.arange(length, device=device)
    distance = columns[:, None] - columns
    return (distance >= 0) & (distance < window)


Kernel = Callable[[Tensor, Tensor, Tensor, PackedLayout, Options], Tensor]
"""(query, key, value, each [T, heads, E]; layout, options) -> [T, H, E]."""


def packed(kernel: Kernel) -> Callable[..., tuple[Tensor, None]]:
    """The transformers function that computes attention with a variable-length kernel, whose queries, keys and values
    are equally wide: narrower ones are padded with zeros."""

    def attention(
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **named: Any,
    ) -> tuple[Tensor, None]:
        layout = layout_of(module, named)
        options = options_of(query, attention_mask, named)
        width = max(query.shape[3], value.shape[3])
        q, k, v = (layout.expand(F.pad(t[0], (0, width - t.shape[3]))) for t in (query, key, value))
        output = kernel(q, k, v, layout, options)[..., : value.shape[3]]
        return layout.select(output).unsqueeze(0), None

    return attention


@packed
def varlen_attention(q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout, options: Options) -> Tensor:
    """torch's own variable-length attention; no package to build.

    Keys and values keep their smaller number of heads: the kernel can read them so in every version of torch, and from
    2.12 on it has to be told.
    """
    require_options("varlen", options.beyond_plain)
    window, scale = options.window, options.scale
    if "window_size" in _VARLEN_OPTIONS:
        named: dict[str, Any] = {"window_size": (-1 if window is None else window - 1, 0)}
    else:
        if window is not None and layout.max_seqlen > window:
            raise ValueError("a sliding window needs torch 2.11 or newer, or --model.attention flash_attn")
        named = {"is_causal": True}
    if "enable_gqa" in _VARLEN_OPTIONS:
        named["enable_gqa"] = q.shape[1] != k.shape[1]
    if "scale" in _VARLEN_OPTIONS:
        named["scale"] = scale
    elif abs(scale * q.shape[-1] ** 0.5 - 1) > 1e-6:
        raise ValueError(f"attention scale {scale} needs torch 2.11 or newer, or --model.attention flash_attn")
    bounds, longest = layout.cu_seqlens, layout.max_seqlen
    output = varlen_attn(q, k, v, bounds, bounds, longest, longest, **named)
    assert isinstance(output, Tensor)  # it would be a tuple if more were asked for
    return output


@packed
def flash_attention(q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout, options: Options) -> Tensor:
    """The flash-attn package's variable-length kernel."""
    from flash_attn import flash_attn_varlen_func

    require_options("flash_attn", options.beyond_plain)
    size = (-1, -1) if options.window is None else (options.window - 1, 0)
    bounds, longest = layout.cu_seqlens, layout.max_seqlen
    named = {} if options.softcap is None else {"softcap": options.softcap}  # which versions before 2.6 do not know
    return flash_attn_varlen_func(
        q, k, v, bounds, bounds, longest, longest, softmax_scale=options.scale, causal=True, window_size=size, **named
    )


def _flash_attn_installed() -> bool:
    from importlib.util import find_spec

    return find_spec("flash_attn") is not None


def register(name: str, attention: Callable[..., tuple[Tensor, None]]) -> None:
    """Makes an attention function selectable as ``attn_implementation=name``.

    No mask is registered under the name, because the layout is enough. Then transformers makes no mask and does not
    search ``position_ids`` for packed sequences, for which the host would wait for the GPU.
    """
    AttentionInterface.register(name, attention)


def asked_of(model: PreTrainedModel) -> frozenset[str]:
    """What the attention of a model on the meta device asks for beyond plain attention, by transformers' names: seen in
    a forward pass without values.

    A layer that cannot be computed without values ends the pass, and what later layers ask for is seen in the first
    real one. Raises ValueError for what no attention of ours has.
    """
    found: set[str] = set()
    refusals: list[ValueError] = []
    calls = 0

    def note(
        module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **named: Any
    ) -> tuple[Tensor, None]:
        nonlocal calls
        calls += 1
        try:
            found.update(options_of(query, attention_mask, named).beyond_plain)
        except ValueError as refusal:
            refusals.append(refusal)
        return value.new_empty(1, query.shape[2], query.shape[1], value.shape[3]), None

    register("fastgrpo_asked", note)
    decoder = decoder_of(model)
    before = decoder.config._attn_implementation
    decoder.set_attn_implementation("fastgrpo_asked")
    ids = torch.zeros(1, 4, dtype=torch.int64, device="meta")
    with contextlib.suppress(Exception):  # of any code that meets tensors without values
        decoder(input_ids=ids, position_ids=ids, use_cache=False)
        if calls == 0:
            refusals.append(
                ValueError(
                    f"a {type(model).__name__} computes attention, or what it has in its place, by code of its own, "
                    f"which cannot be told where one sequence ends and the next begins"
                )
            )
    decoder.set_attn_implementation(before)
    if refusals:
        raise refusals[0]
    return frozenset(found)


register("fastgrpo_padded", padded_attention)
register("fastgrpo_varlen", varlen_attention)
register("fastgrpo_flash_attn", flash_attention)
