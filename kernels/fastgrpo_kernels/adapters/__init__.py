"""Adapters: one call makes another RL stack use our ops (docs/adapters.md).

A peer is imported when its adapter is called, so that this package needs torch alone. What is here is shared by the
adapters: the check of the peer's version, how a transformers model makes its logits, and replacing one method of one
object so that it can be undone.
"""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from .. import linear_logprobs
from ..checks import FLOATS


def check_version(package: str, known: tuple[str, ...]) -> None:
    """Raises ValueError unless ``package`` is installed in a version that the adapter was tested with."""
    try:
        got = metadata.version(package)
    except metadata.PackageNotFoundError:
        got = "none"
    if got not in known:
        raise ValueError(
            f"The adapter for {package} was tested with {package} {', '.join(known)}, and {got} is installed. Install "
            f"{package}=={known[-1]}, or run without the adapter: it does not patch a version that it does not know."
        )


def replace_method(owner: Any, name: str, method: Callable) -> Callable[[], None]:
    """Puts ``method`` in the place of ``owner.name``, on this object alone; returns the function that undoes it.

    Undoing works in any order: where something else has wrapped the method since, ours passes calls through.
    Raises ValueError where one of ours is already there.
    """
    original = getattr(owner, name)
    own = vars(owner).get(name)
    if getattr(own, "in_use", lambda: False)():
        raise ValueError(
            f"{type(owner).__name__}.{name} already uses linear_logprobs: undo the first call before making another"
        )
    in_use = True

    @functools.wraps(original)  # transformers' generate() reads the signature
    def replacement(*args: Any, **kwargs: Any) -> Any:
        return (method if in_use else original)(*args, **kwargs)

    def undo() -> None:
        nonlocal in_use
        in_use = False
        if vars(owner).get(name) is replacement:
            delattr(owner, name)
            if own is not None:
                setattr(owner, name, own)

    replacement.in_use = lambda: in_use  # type: ignore[attr-defined]
    setattr(owner, name, replacement)
    return undo


def unwrapped(model: Any) -> Any:
    """The transformers model inside of DDP, FSDP, a DeepSpeed engine and LoRA.

    Raises ValueError for other methods of PEFT, some of which change the tokens or the head.
    """
    while isinstance(getattr(model, "module", None), nn.Module):
        model = model.module
    if not hasattr(model, "peft_config"):
        return model
    methods = {str(getattr(c.peft_type, "value", c.peft_type)) for c in model.peft_config.values()}
    if methods != {"LORA"}:
        raise ValueError(f"Of PEFT's methods only LoRA is supported, got {sorted(methods)}")
    return model.get_base_model()


@dataclass(frozen=True)
class LogitsRule:
    """What a model does after its LM head: ``logits = cap(scale * head(hidden))``."""

    scale: float
    softcap: float | None


def logits_rule(model: Any) -> LogitsRule:
    """The way in which a causal language model of transformers makes its logits.

    Raises ValueError for what the op cannot express, and for what no test has covered: a model that is not
    transformers' own, several modalities, a router loss, and an LM head that is adapted, quantised or partitioned.
    """
    name = type(model).__name__
    if not any(c.__module__.startswith("transformers.models.") for c in type(model).__mro__):
        raise ValueError(f"Need a model class of transformers, whose way to the logits is known, got {name}")
    config = model.config
    if config.get_text_config() is not config:
        raise ValueError(f"Need a text model, got {name} with a nested text configuration: images are not supported")
    if getattr(config, "output_router_logits", False):
        raise ValueError(f"{name} is asked for its router's loss, which is not supported: set output_router_logits off")
    _check_head(name, model.get_output_embeddings())
    return _rule_of_config(name, config)


def _check_head(name: str, head: Any) -> None:
    if not isinstance(head, nn.Linear):
        raise ValueError(
            f"Need an LM head that is a plain torch.nn.Linear, got {type(head).__name__} in {name}: leave the head out "
            "of LoRA's target_modules and modules_to_save"
        )
    if head.weight.dtype not in FLOATS:
        raise ValueError(f"Need an LM head of floating point weights, got {head.weight.dtype} in {name}")
    if hasattr(head.weight, "ds_id"):
        raise ValueError(f"The LM head of {name} is partitioned by ZeRO stage 3: use stage 2 or FSDP")


def _rule_of_config(name: str, config: Any) -> LogitsRule:
    """The configuration's rule: Cohere multiplies by `logit_scale`, Granite divides by `logits_scaling`, Gemma caps."""
    settings = dict(config.to_dict())
    softcap = settings.pop("final_logit_softcapping", None)
    scale = settings.pop("logit_scale", None)
    scale = 1.0 if scale is None else scale
    if str(config.model_type).startswith("granite"):
        scale /= settings.pop("logits_scaling", 1.0)
    unknown = {k: v for k, v in settings.items() if _LOGITS_SETTING.search(k) and v not in (None, 1, False)}
    if unknown:
        raise ValueError(f"{name} changes its logits in a way that is not known here: {unknown}")
    if scale <= 0:
        raise ValueError(f"Need logits scaled by a number above 0, got {scale} in {name}")
    return LogitsRule(scale, softcap)


# The names of transformers 5 for settings that act on logits; caps inside attention are the backbone's own.
_LOGITS_SETTING = re.compile(r"^(?!att).*logits?_?(scal|soft_?cap|cap)|lm_head_multiplier|output_multiplier")


def head_logprobs(
    model: Any,
    rule: LogitsRule,
    hidden: Tensor,  # [B, L, D]
    target_ids: Tensor,  # [B, L] int64, any value where not in rows
    rows: Tensor,  # [B, L] bool
    *,
    temperature: float,
    entropy: bool,
) -> tuple[Tensor, Tensor | None]:  # [B, L] float32 each, 0 where not in rows
    """Logprobs and entropy of the chosen rows, by ``linear_logprobs`` through the model's LM head.

    Call it inside the model's forward, where FSDP has gathered its weights. Under autocast it computes in autocast's
    dtype, as F.linear would; otherwise the weights are cast to the dtype of the hidden states.
    """
    head = model.get_output_embeddings()
    weight, bias = _gathered(head.weight), _gathered(head.bias)
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    with torch.autocast(device, enabled=False):
        logprobs, entropies = linear_logprobs(
            hidden[rows].to(dtype),
            weight.to(dtype),
            target_ids[rows],
            bias=None if bias is None else bias.to(dtype),
            temperature=temperature / rule.scale,
            softcap=None if rule.softcap is None else rule.softcap / rule.scale,
            entropy=entropy,
        )
    return _spread(logprobs, rows), None if entropies is None else _spread(entropies, rows)


def _gathered(parameter: Any) -> Any:
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def _spread(values: Tensor, rows: Tensor) -> Tensor:  # [T] -> [B, L]
    """The values in their rows, 0 elsewhere; part of the graph even if no row was chosen, so that backward() works."""
    return values.new_zeros(rows.shape).masked_scatter(rows, values)
