"""Log-probabilities and entropy of logits that a stack already has: one read of them, and one more for the gradient."""

from typing import Any

import torch
from torch import Tensor

from ._ops import add_op_namespace_prefix
from .checks import FLOATS, logit_transform, require
from .derivatives import check_derivatives, first_derivative_only
from .dispatch import running_on
from .primitives import LogitTransform, RowStats


def logprobs_from_logits(
    logits: Tensor,  # [T, V]
    target_ids: Tensor,  # [T] int64
    *,
    temperature: float | Tensor = 1.0,  # or [T]
    softcap: float | None = None,
    entropy: bool = False,
    overwrite_logits: bool = False,
) -> tuple[Tensor, Tensor | None]:  # logprobs [T], entropy [T] if asked for
    """Log-softmax of the logits at the targets and the entropy in nats, float32 (float64 for float64 logits).

    ``overwrite_logits``: the backward pass puts the gradient where the logits are, which saves a [T, V] tensor; nobody
    else may need them any more. Log-probabilities of bfloat16 logits are off by up to 0.08 whatever is done here: that
    was lost when they were rounded. Raises ValueError for shapes, dtypes and constants that do not fit, and
    NotImplementedError for forward mode, torch.func and second derivatives.
    """
    require(
        logits.dim() == 2 and target_ids.shape == logits.shape[:1] and target_ids.dtype == torch.int64,
        lambda: (
            f"need logits [T, V] and target_ids [T] int64, got {list(logits.shape)} and {list(target_ids.shape)} "
            f"{target_ids.dtype}"
        ),
    )
    require(logits.dtype in FLOATS, lambda: f"logits must have 16, 32 or 64 bits and a point, got {logits.dtype}")
    require(
        logits.device == target_ids.device,
        lambda: f"logits and target_ids must be on one device, got {logits.device} and {target_ids.device}",
    )
    temperatures = temperature if isinstance(temperature, Tensor) else None
    check_derivatives("logprobs_from_logits", {"logits": logits}, {"temperature": temperatures})
    transform = logit_transform(temperature, softcap, logits)
    if logits.dtype == torch.float16 and logits.device.type == "cpu":
        logits = logits.float()
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    if len(logits) > 1 and logits.stride(0) < logits.shape[1]:
        overwrite_logits = False  # rows share memory: there is no place for their gradients
    logprobs, _, entropies = _forward(
        logits, target_ids.contiguous(), *transform.encode(), entropy, overwrite_logits
    )  # fmt: skip
    return logprobs, entropies if entropy else None


@torch.library.custom_op(add_op_namespace_prefix("logprobs_from_logits"), mutates_args=())
def _forward(
    logits: Tensor,
    target_ids: Tensor,
    temperature: float,
    temperatures: Tensor | None,
    softcap: float,
    entropy: bool,
    overwrite_logits: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # RowStats
    transform = LogitTransform.decode(temperature, temperatures, softcap)
    with running_on(logits) as primitives:
        stats = primitives.row_stats(logits, target_ids, transform, entropy)
    logprobs, lse, entropies = (values.clone() for values in stats.encode())  # outputs of an op may not share memory
    return logprobs, lse, entropies


@_forward.register_fake
def _(logits: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    *_, entropy, _ = rest
    return RowStats.empty(logits, entropy).encode()


@torch.library.custom_op(add_op_namespace_prefix("logprobs_from_logits_backward"), mutates_args=("out",))
def _backward(
    logits: Tensor,
    target_ids: Tensor,
    temperature: float,
    temperatures: Tensor | None,
    softcap: float,
    logprobs: Tensor,
    lse: Tensor,
    entropies: Tensor,
    grad_logprobs: Tensor,
    grad_entropy: Tensor | None,
    out: Tensor,  # may be the logits
) -> None:
    transform = LogitTransform.decode(temperature, temperatures, softcap)
    stats = RowStats(logprobs, lse, entropies if grad_entropy is not None else None)
    with running_on(logits) as primitives:
        primitives.row_gradient(logits, target_ids, transform, stats, grad_logprobs, grad_entropy, out)


@_backward.register_fake
def _(*_: Any) -> None:
    return None


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, target_ids, temperature, temperatures, softcap, _, overwrite_logits = inputs
    ctx.save_for_backward(logits, target_ids, temperatures, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.constants = temperature, softcap, overwrite_logits


def _autograd(
    ctx: Any, grad_logprobs: Tensor | None, _: Tensor | None, grad_entropy: Tensor | None
) -> tuple[Tensor | None, ...]:
    first_derivative_only("logprobs_from_logits")
    logits, target_ids, temperatures, logprobs, lse, entropies = ctx.saved_tensors
    temperature, softcap, overwrite_logits = ctx.constants
    grad_logprobs = torch.zeros_like(logprobs) if grad_logprobs is None else grad_logprobs.contiguous()
    grad_entropy = None if grad_entropy is None or not len(entropies) else grad_entropy.contiguous()
    out = logits.detach() if overwrite_logits else torch.empty_like(logits, memory_format=torch.contiguous_format)
    _backward(
        logits.detach(), target_ids, temperature, temperatures, softcap, logprobs, lse, entropies, grad_logprobs,
        grad_entropy, out,
    )  # fmt: skip
    return (out, *[None] * 6)


_forward.register_autograd(_autograd, setup_context=_setup_context)
