"""verl's FSDP actor with ``linear_logprobs`` in the place of its fused LM heads."""

from collections.abc import Callable
from importlib import metadata
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule

from . import check_version, head_logprobs, logits_rule, replace_method, unwrapped

KNOWN_VERSIONS = ("0.8.0", "0.9.0", "0.9.1")


def use_linear_logprobs(engine: Any) -> Callable[[], None]:
    """Makes verl's FSDP engine compute logprobs and entropy with our op; returns what undoes it.

    ``engine`` is an initialized `FSDPEngineWithLMHead`, of whose model `forward` is replaced, on this one object. Or
    it is the class: then `initialize` is replaced on the class, and every engine that this process makes from now on
    (actor, reference) uses our op. That is for Ray's workers, by a module that `model.external_lib` names.

    verl must run with `actor_rollout_ref.model.use_fused_kernels=True`, in which it asks the model for logprobs in
    the place of logits; which backend is set does not matter. A bias, cap or scale of the logits is applied, which
    verl's own fused heads leave out.

    Raises ValueError for a verl that was not tested, another engine, `use_fused_kernels=False`, the first FSDP,
    Ulysses, quantisation-aware training, padded batches under verl 0.8.0, and whatever ``logits_rule`` refuses; given
    the class, when an engine is initialized.
    """
    check_version("verl", KNOWN_VERSIONS)
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead, FSDPEngineWithValueHead

    if engine is FSDPEngineWithLMHead:
        return _replace_initialize(engine, critic=FSDPEngineWithValueHead)
    if not isinstance(engine, FSDPEngineWithLMHead) or isinstance(engine, FSDPEngineWithValueHead):
        raise ValueError(f"Need verl's FSDPEngineWithLMHead (actor.strategy=fsdp2), got {engine!r}")
    return _replace_forward(engine)


def _replace_initialize(engine_class: Any, critic: type) -> Callable[[], None]:
    original = engine_class.initialize

    def initialize(engine: Any) -> None:
        original(engine)
        if not isinstance(engine, critic):  # a subclass, which inherits this method
            _replace_forward(engine)

    return replace_method(engine_class, "initialize", initialize)


def _replace_forward(engine: Any) -> Callable[[], None]:
    from verl.models.transformers.dense_common import CausalLMOutputForPPO

    _check_engine(engine)
    model = unwrapped(engine.module)
    rule, original = logits_rule(model), model.forward

    def forward(*args: Any, temperature: float | None = None, shift_labels: Any = None, **kwargs: Any) -> Any:
        if temperature is None:
            return original(*args, **kwargs)
        input_ids, attention_mask = kwargs["input_ids"], kwargs.get("attention_mask")  # [B, L]
        # Rolled over the whole packed row by verl, since a rank may hold a part of it.
        target_ids = torch.roll(input_ids, shifts=-1, dims=-1) if shift_labels is None else shift_labels
        rows = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        hidden = model.base_model(*args, **{**kwargs, "return_dict": True}).last_hidden_state
        logprobs, entropies = head_logprobs(
            model, rule, hidden, target_ids, rows, temperature=float(temperature), entropy=True
        )
        return CausalLMOutputForPPO(log_probs=logprobs, entropy=entropies)

    return replace_method(model, "forward", forward)


def _check_engine(engine: Any) -> None:
    if not hasattr(engine, "module"):
        raise ValueError("Need an engine with a model: call engine.initialize() first")
    if not engine.model_config.use_fused_kernels:
        raise ValueError(
            "verl materialises the logits: set actor_rollout_ref.model.use_fused_kernels=True, so that it asks the "
            "model for logprobs"
        )
    if not isinstance(engine.module, FSDPModule):
        raise ValueError(
            f"Tested with FSDP2 alone, got {type(engine.module).__name__}: set actor_rollout_ref.actor.strategy=fsdp2 "
            "and actor_rollout_ref.ref.strategy=fsdp2"
        )
    if metadata.version("verl") == "0.8.0" and not engine.model_config.use_remove_padding:
        raise ValueError("verl 0.8.0 fails with fused kernels on padded batches: set model.use_remove_padding=True")
    if engine.use_ulysses_sp:
        raise ValueError("Sequence parallelism was not tested: set ulysses_sequence_parallel_size=1")
    if getattr(engine, "_qat_enabled", False):
        raise ValueError("Quantisation-aware training is not supported: set qat.enable=False")
