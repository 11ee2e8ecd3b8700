"""What a model asks of its attention besides queries, keys and values."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

HARMLESS = frozenset({"position_ids", "output_attentions", "use_cache", "cache_position", "output_router_logits"})
"""Arguments that models hand to every attention and that change nothing where a layout says what is packed."""

MEANING = {"softcap": "a softcap of attention scores", "s_aux": "attention sinks"}


class Options(NamedTuple):
    """How scores become weights: ``softmax(cap(scale * q @ k.T))`` over the tokens within the window."""

    scale: float
    window: int | None = None  # tokens that a query sees, its own included
    softcap: float | None = None  # of a score: ``softcap * tanh(score / softcap)``
    sinks: Tensor | None = None  # [H], of each head a score that takes part in the softmax and has no value

    @property
    def beyond_plain(self) -> frozenset[str]:
        """What of them torch's own attention does not have, by transformers' names."""
        rare = {"softcap": self.softcap, "s_aux": self.sinks}
        return frozenset(name for name, value in rare.items() if value is not None)


def options_of(query: Tensor, attention_mask: Tensor | None, named: dict[str, Any]) -> Options:
    """The options among the arguments of an attention function, by the names that transformers gives them.

    Raises ValueError for one that would change the result and is not known, and for a mask: transformers makes none for
    attention that has a layout, so that this one is of the model's own making.
    """
    if attention_mask is not None:
        raise ValueError("this model makes an attention mask of its own, which fastgrpo does not know: take another")
    named = {name: value for name, value in named.items() if value is not None and name not in HARMLESS}
    if named.pop("dropout", 0.0):
        raise ValueError("attention dropout makes logprobs random: set attention_dropout to 0 in the model's config")
    if not named.pop("is_causal", True):
        raise ValueError("this model's attention looks ahead, and fastgrpo trains models that see earlier tokens only")
    scale = named.pop("scaling", query.shape[-1] ** -0.5)
    options = Options(scale, named.pop("sliding_window", None), named.pop("softcap", None), named.pop("s_aux", None))
    if named:
        raise ValueError(
            f"this model's attention uses {', '.join(sorted(named))}, which fastgrpo does not know: take a model "
            f"without it, or --model.attention eager with --rollout.engine vllm"
        )
    return options


def lacks(setting: str) -> frozenset[str]:
    """What of it an attention setting cannot compute. transformers' own ``sdpa`` would leave it out in silence."""
    return {"varlen": frozenset(MEANING), "sdpa": frozenset(MEANING), "flash_attn": frozenset({"s_aux"})}.get(
        setting, frozenset()
    )


def require_options(setting: str, beyond_plain: frozenset[str]) -> None:
    """Raises ValueError for options that the attention of this setting does not have."""
    for name in sorted(lacks(setting) & beyond_plain):
        others = "padded" if name in lacks("flash_attn") else "padded or flash_attn"
        raise ValueError(f"this model has {MEANING[name]}, which --model.attention {setting} lacks: use {others}")


def attend(
    query: Tensor,  # [..., heads, L, E]
    key: Tensor,  # [..., heads, M, E]
    value: Tensor,  # [..., heads, M, F]
    seen: Tensor,  # bool, where each query may look; of a shape that fits to [..., heads, L, M]
    options: Options,
    sinks: Tensor | None,  # of a shape that fits to [..., heads, L, 1]
) -> Tensor:  # [..., heads, L, F]
    """Attention by its definition, with all scores in memory, for options that torch's own does not have."""
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = torch.matmul(query, key.transpose(-2, -1)).to(wide) * options.scale
    if options.softcap is not None:
        scores = torch.tanh(scores / options.softcap) * options.softcap
    scores = scores.masked_fill(~seen, -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks.to(wide).expand(*scores.shape[:-1], 1)], -1)
    weights = torch.softmax(scores, -1)[..., : key.shape[-2]]
    return torch.matmul(weights.to(value.dtype), value)
