"""OpenRLHF's Actor with ``linear_logprobs`` in the place of float32 logits."""

import functools
from collections.abc import Callable
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from . import check_version, head_logprobs, logits_rule, replace_method, unwrapped

KNOWN_VERSIONS = ("0.11.0", "0.11.1", "0.11.2")


def use_linear_logprobs(actor: Any) -> Callable[[], None]:
    """Makes an `openrlhf.models.Actor` compute logprobs and entropy with our op; returns what undoes it.

    Replaces two methods, each on its object alone: `forward` of the actor, and `forward` of the transformers model in
    it, before or after DeepSpeed has wrapped that. What the actor returns is upstream's, but for two things: the
    output has no `logits`, and logprobs and entropy are 0 where no loss reads them (outside of ``action_mask``, or
    of ``attention_mask`` where that alone is given). The entropy has no temperature in 0.11.0, as upstream's there.

    Raises ValueError for an OpenRLHF that was not tested, another class, images, and whatever ``logits_rule``
    refuses, ZeRO stage 3 among it; and from the actor for a call that asks for logits, and for ring attention.
    """
    check_version("openrlhf", KNOWN_VERSIONS)
    from openrlhf.models.actor import Actor

    if not isinstance(actor, Actor):
        raise ValueError(f"Need an openrlhf.models.Actor, got {type(actor).__name__}")
    if getattr(actor, "is_vlm", False):
        raise ValueError("Need a text model, got an actor with is_vlm: images are not supported")
    undo_model = _replace_model_forward(unwrapped(actor.model))
    undo_actor = _replace_actor_forward(actor)

    def undo() -> None:
        undo_actor()
        undo_model()

    return undo


def _replace_model_forward(model: Any) -> Callable[[], None]:
    """Makes a call with ``target_ids`` return logprobs and no logits; others, as in generation, reach the original."""
    from transformers.modeling_outputs import CausalLMOutput

    rule, original = logits_rule(model), model.forward
    # OpenRLHF 0.11.0 divides by the temperature after it has taken the entropy.
    entropy_unscaled = metadata.version("openrlhf") == "0.11.0"

    def forward(
        *args: Any,
        target_ids: Tensor | None = None,  # [B, L]
        rows: Tensor | None = None,  # [B, L] bool
        temperature: float = 1.0,
        entropy: bool = False,
        **kwargs: Any,
    ) -> Any:
        if target_ids is None:
            return original(*args, **kwargs)
        assert rows is not None
        hidden = model.base_model(*args, **kwargs).last_hidden_state
        head = functools.partial(head_logprobs, model, rule, hidden, target_ids, rows)
        apart = entropy and entropy_unscaled and temperature != 1.0
        logprobs, entropies = head(temperature=temperature, entropy=entropy and not apart)
        if apart:
            _, entropies = head(temperature=1.0, entropy=True)
        output = CausalLMOutput()
        output["log_probs"] = logprobs
        if entropies is not None:
            output["entropy"] = entropies
        return output

    return replace_method(model, "forward", forward)


def _replace_actor_forward(actor: Any) -> Callable[[], None]:
    from openrlhf.models.ring_attn_utils import gather_and_pad_tensor

    def forward(
        sequences: Tensor,  # [B, L]
        action_mask: Tensor | None = None,  # [B, A], of the last A tokens
        attention_mask: Tensor | None = None,  # [B, L]
        return_output: bool = False,
        allgather_logits: bool = False,
        return_logprobs: bool = False,
        ring_attn_group: Any = None,
        packed_seq_lens: list[int] | None = None,
        return_entropy: bool = False,
        **images: Any,
    ) -> Any:
        _check_call(action_mask, attention_mask, return_logprobs, ring_attn_group, images)
        inputs, indices = _model_inputs(actor, sequences, action_mask, attention_mask)
        output = actor.model(**inputs, temperature=actor.temperature, entropy=return_entropy)
        for name in ("log_probs", "entropy") if return_entropy else ("log_probs",):
            values = output[name]
            if indices is not None:
                values = gather_and_pad_tensor(values, None, 0, indices, *sequences.shape)
            output[name] = values[:, :-1]
        logprobs = output["log_probs"]
        if action_mask is not None:
            logprobs = logprobs[:, -action_mask.shape[1] :] * action_mask.float()
        return (logprobs, output) if return_output else logprobs

    return replace_method(actor, "forward", forward)


def _check_call(
    action_mask: Tensor | None, attention_mask: Tensor | None, return_logprobs: bool, ring_attn_group: Any, images: Any
) -> None:
    if action_mask is None and not return_logprobs:
        raise ValueError("The actor is asked for logits, which are never made: undo the adapter for this call")
    if attention_mask is None:
        raise ValueError("Need attention_mask [B, L], got None")
    if ring_attn_group is not None:
        raise ValueError("Ring attention is not supported: set ds.ring_attn_size=1")
    if images:
        raise ValueError(f"Need a text batch, got {sorted(images)}: images are not supported")


def _model_inputs(
    actor: Any,
    sequences: Tensor,  # [B, L]
    action_mask: Tensor | None,  # [B, A]
    attention_mask: Any,  # [B, L]
) -> tuple[dict[str, Tensor | None], Tensor | None]:  # what the model takes; where packed tokens stand, if packed
    from openrlhf.models.ring_attn_utils import unpad_and_slice_tensor

    rows = attention_mask.bool()
    if action_mask is not None:  # the row before a token is the one that predicts it
        rows = torch.zeros_like(rows)
        rows[:, -1 - action_mask.shape[1] : -1] = action_mask.bool()
    if actor.packing_samples:
        ids, positions, targets, _, indices = unpad_and_slice_tensor(sequences, attention_mask, None)
        mask, rows = None, rows.flatten()[indices][None]
    else:
        ids, targets, mask, indices = sequences, sequences.roll(-1, dims=1), attention_mask, None
        positions = (attention_mask.long().cumsum(-1) - 1).masked_fill(attention_mask == 0, 1)
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "target_ids": targets, "rows": rows}
    return inputs, indices
