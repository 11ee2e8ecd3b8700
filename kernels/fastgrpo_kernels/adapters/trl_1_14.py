"""What TRL 1.14 lacks: the trainer's call that asks the model for logprobs, as TRL 1.15 and newer make it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from . import replace_method


@dataclass
class FusedCausalLMOutput(ModelOutput):
    """The fields that our forward fills, under TRL 1.15's names."""

    loss: Tensor | None = None
    log_probs: Tensor | None = None
    entropy: Tensor | None = None
    label_mask: Tensor | None = None


def replace_scoring(trainer: Any) -> Callable[[], None]:
    """Makes the trainer score by ``fused_lm_head=True``, through whatever wraps the model; returns what undoes it.

    Raises ValueError for `use_liger_kernel`, under which TRL 1.14 enters the model without its forward; and, when they
    come, for images and a router's loss.
    """
    if trainer.use_liger_kernel:
        raise ValueError("TRL 1.14's own chunked head was not tested beside ours: set use_liger_kernel=False")

    def scoring(
        model: Any,
        input_ids: Tensor,  # [B, L]
        attention_mask: Tensor,  # [B, L]
        logits_to_keep: int,
        batch_size: int | None = None,  # rows that go through the model at once
        compute_entropy: bool = False,
        **others: Any,
    ) -> tuple[Tensor, Tensor | None, None]:  # logprobs and entropy [B, logits_to_keep]; no router's loss
        unsupported = sorted(name for name, value in others.items() if value is not None and value is not False)
        if unsupported:
            raise ValueError(f"linear_logprobs under TRL does not support {unsupported}: undo the adapter")
        labels = input_ids.masked_fill(attention_mask == 0, -100)
        labels[:, :-logits_to_keep] = -100
        logprobs, entropies = [], []
        portions = (t.split(batch_size or len(t)) for t in (input_ids, attention_mask, labels))
        for ids, mask, wanted in zip(*portions, strict=True):
            with trainer.accelerator.autocast():
                output = model(input_ids=ids, attention_mask=mask, labels=wanted, fused_lm_head=True)
            logprobs.append(output.log_probs[:, -logits_to_keep:])
            if compute_entropy:
                entropies.append(output.entropy[:, -logits_to_keep:])
        return torch.cat(logprobs), torch.cat(entropies) if compute_entropy else None, None

    return replace_method(trainer, "_get_per_token_logps_and_entropies", scoring)
