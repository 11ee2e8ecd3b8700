"""TRL's GRPOTrainer with ``linear_logprobs`` in the place of its own LM head."""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor

from . import check_version, head_logprobs, logits_rule, replace_method

KNOWN_VERSIONS = ("1.14.2", "1.15.0", "1.16.0")


def use_linear_logprobs(trainer: Any) -> Callable[[], None]:
    """Makes a constructed ``trl.GRPOTrainer`` compute logprobs and entropy with our op; returns what undoes it.

    Replaces `forward` of the policy, and of the reference model where there is one, on these two objects. Calls
    without TRL's keyword ``fused_lm_head``, as in generation, reach the original. TRL 1.14 does not use the keyword
    yet: there the trainer's method that scores is replaced too, by one that does.

    Raises ValueError for a TRL that was not tested, a trainer of another class, PEFT, images, a router loss, under
    TRL 1.14 `use_liger_kernel`, and whatever ``logits_rule`` refuses.
    """
    check_version("trl", KNOWN_VERSIONS)
    import trl

    if not isinstance(trainer, trl.GRPOTrainer):
        raise ValueError(f"Need a trl.GRPOTrainer, got {type(trainer).__name__}")
    if hasattr(trainer.accelerator.unwrap_model(trainer.model), "peft_config"):
        raise ValueError("PEFT models are not supported under TRL: train all weights, or run without the adapter")
    if trainer.aux_loss_enabled:
        raise ValueError("The router's loss of mixture-of-experts models is not supported: set router_aux_loss_coef=0")
    with ExitStack() as undone:  # what was replaced before an error is put back
        if not _has_fused_head():
            from .trl_1_14 import replace_scoring

            undone.callback(replace_scoring(trainer))
        undone.callback(_replace_forward(trainer, trainer.model, entropy=True))
        if trainer.ref_model is not None:
            undone.callback(_replace_forward(trainer, trainer.ref_model, entropy=False))
        return undone.pop_all().close


def _has_fused_head() -> bool:
    """Whether this TRL's trainers ask the model for logprobs, by ``fused_lm_head=True``."""
    from trl.trainer import utils

    return hasattr(utils, "add_fused_lm_head")


def _replace_forward(trainer: Any, wrapped: Any, *, entropy: bool) -> Callable[[], None]:
    if _has_fused_head():
        from trl.trainer.utils import FusedCausalLMOutput
    else:
        from .trl_1_14 import FusedCausalLMOutput

    model = trainer.accelerator.unwrap_model(wrapped)
    rule, original = logits_rule(model), model.forward

    def forward(*args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        if not fused_lm_head:
            return original(*args, **kwargs)
        _refuse(kwargs)
        labels: Tensor = kwargs.pop("labels")[:, 1:]  # [B, L], -100 where nothing is scored
        hidden = model.base_model(*args, **kwargs, use_cache=False).last_hidden_state[:, :-1]
        rows = labels != -100
        with _head_precision(trainer, hidden):
            hidden = hidden.float() if trainer.args.cast_lm_head_to_fp32 else hidden
            logprobs, entropies = head_logprobs(
                model, rule, hidden, labels, rows, temperature=trainer.temperature, entropy=entropy
            )
        return FusedCausalLMOutput(
            loss=-logprobs.sum() / rows.sum().clamp(min=1), log_probs=logprobs, entropy=entropies, label_mask=rows
        )

    return replace_method(model, "forward", forward)


def _refuse(kwargs: dict[str, Any]) -> None:
    """Raises ValueError for what TRL's own forward takes and this one does not."""
    unsupported = {"shift_labels", "num_items_in_batch", "output_router_logits", "pixel_values"} & kwargs.keys()
    if unsupported:
        raise ValueError(f"linear_logprobs under TRL does not support {sorted(unsupported)}: undo the adapter")


def _head_precision(trainer: Any, hidden: Tensor) -> AbstractContextManager:
    """The precision of TRL's own head: one that it has cast to float32 runs outside of autocast."""
    return torch.autocast(hidden.device.type, enabled=False) if trainer.args.cast_lm_head_to_fp32 else nullcontext()
