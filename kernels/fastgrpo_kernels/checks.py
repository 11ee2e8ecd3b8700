"""Checks of the public functions' inputs, and the form in which the ops take them."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from .derivatives import check_derivatives
from .head import LinearInputs
from .objective import Objective
from .primitives import LogitTransform, TokenFields, statistics_dtype

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def require(condition: bool, message: str | Callable[[], str]) -> None:
    """Raises ValueError unless the condition holds.

    A message with numbers is a function: called on failure alone, and never while torch.compile traces.
    """
    if not condition:
        raise ValueError(message if isinstance(message, str) else message())


def readable(tensor: Tensor) -> bool:
    """Whether the values can be read: a GPU would have to be waited for, and what is traced or fake has none."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling() and not isinstance(tensor, FakeTensor)


def linear_inputs(
    op: str,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target_ids: Tensor,
    temperature: float | Tensor,
    softcap: float | None,
    chunk_tokens: int | None,
) -> LinearInputs:
    """The inputs as the ops take them: under autocast in its dtype, as `F.linear` would; bias and ids contiguous.

    Raises ValueError for shapes, dtypes, devices or constants that do not fit, and for a sharded weight.
    """
    _refuse_sharded(hidden=hidden, weight=weight, bias=bias)
    check_head(hidden, weight, bias, target_ids)
    temperatures = temperature if isinstance(temperature, Tensor) else None
    check_derivatives(op, {"hidden": hidden, "weight": weight, "bias": bias}, {"temperature": temperatures})
    device = hidden.device.type
    with_autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)  # not on meta
    if with_autocast and hidden.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        hidden, weight, bias = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    check_dtypes(hidden, weight, bias)
    require(chunk_tokens is None or chunk_tokens > 0, lambda: f"chunk_tokens must be above 0, got {chunk_tokens}")
    transform = logit_transform(temperature, softcap, hidden)
    bias = None if bias is None else bias.contiguous()
    return LinearInputs(hidden, weight, bias, target_ids.contiguous(), transform, chunk_tokens or 0)


def _refuse_sharded(**tensors: Tensor | None) -> None:
    from torch.distributed.tensor import DTensor  # not with the package: it takes long to import

    sharded = [name for name, tensor in tensors.items() if isinstance(tensor, DTensor)]
    require(
        not sharded,
        lambda: (
            f"{sharded[0]} is a DTensor: call the op inside the forward of the module that FSDP2 wraps, where the "
            f"weight is whole, or pass {sharded[0]}.full_tensor()"
        ),
    )


def check_head(hidden: Tensor, weight: Tensor, bias: Tensor | None, target_ids: Tensor) -> None:
    """Raises ValueError for shapes and devices that do not fit."""
    require(
        hidden.dim() == 2 and weight.dim() == 2 and hidden.shape[1] == weight.shape[1]
        and target_ids.shape == hidden.shape[:1] and (bias is None or bias.shape == weight.shape[:1]),
        lambda: f"need hidden [T, D], weight [V, D], target_ids [T] and bias [V] or None, got {list(hidden.shape)}, "
        f"{list(weight.shape)}, {list(target_ids.shape)} and {None if bias is None else list(bias.shape)}",
    )  # fmt: skip
    require(target_ids.dtype == torch.int64, lambda: f"target_ids must be int64, got {target_ids.dtype}")
    require(
        hidden.device == weight.device == target_ids.device,
        lambda: (
            f"hidden, weight and target_ids must be on one device, got {hidden.device}, {weight.device} and "
            f"{target_ids.device}"
        ),
    )


def check_dtypes(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raises ValueError unless all have one floating dtype, of at least 16 bits."""
    require(
        hidden.dtype in FLOATS and hidden.dtype == weight.dtype and (bias is None or bias.dtype == weight.dtype),
        lambda: (
            f"hidden, weight and bias must have one floating dtype, got {hidden.dtype}, {weight.dtype} and "
            f"{None if bias is None else bias.dtype}: cast them, or use autocast"
        ),
    )


def logit_transform(
    temperature: float | Tensor,
    softcap: float | None,
    rows: Tensor,  # [T, ...] of the dtype of the logits
) -> LogitTransform:
    """The transform from these two.

    Raises ValueError for a temperature or softcap that is not above 0, or whose inverse the statistics cannot hold, and
    for a wrong length. Where temperatures of rows cannot be read, those that would be refused become NaN, and so do
    their rows: to learn of them, a GPU would have to be waited for.
    """
    least = torch.finfo(statistics_dtype(rows.dtype)).tiny
    most = 1 / least
    bounds = f"from {least:.3g} to {most:.3g}, whose inverses {statistics_dtype(rows.dtype)} holds"
    require(
        softcap is None or least <= softcap < 1e30,
        lambda: f"softcap must be above 0 and finite, or None, got {softcap} (the least is {least:.3g})",
    )
    if isinstance(temperature, Tensor):
        require(
            temperature.shape == rows.shape[:1],
            lambda: f"temperature must be a float or one per token [{len(rows)}], got {list(temperature.shape)}",
        )
        require(not temperature.is_complex(), lambda: f"temperatures must be real, got {temperature.dtype}")
        temperatures = temperature.detach().to(statistics_dtype(rows.dtype)).contiguous()
        valid = (temperatures >= least) & (temperatures <= most)
        if readable(temperature):
            require(bool(valid.all()), lambda: f"every token's temperature must be above 0, {bounds}")
        else:
            temperatures = torch.where(valid, temperatures, math.nan)
        return LogitTransform(temperatures, softcap or 0.0)
    require(
        least <= temperature <= most,
        lambda: f"temperature must be above 0, got {temperature}: {bounds}",
    )
    return LogitTransform(float(temperature), softcap or 0.0)


def token_fields(
    op: str,
    fields: TokenFields,
    objective: Objective,
    rows: Tensor,  # [T, ...] of the device and dtype of the logprobs
) -> TokenFields:
    """The fields as the ops take them: without gradient, floats in the dtype of the statistics, all contiguous.

    Raises ValueError for a shape, dtype or device that does not fit, and for what the objective needs and is missing.
    """
    _check_needs(fields, objective)
    floats = {name: values for name, values in zip(fields._fields, fields, strict=True) if name != "cu_seqlens"}
    check_derivatives(op, {}, floats)
    cu_seqlens = fields.cu_seqlens if objective.needs_whole_responses else None
    if cu_seqlens is not None:
        boundaries(cu_seqlens, "cu_seqlens", len(rows))
        cu_seqlens = cu_seqlens.to(torch.int64).contiguous()
    dtype = statistics_dtype(rows.dtype)

    def checked(name: str, values: Tensor) -> Tensor:
        require(values.device == rows.device, lambda: f"{name} must be on {rows.device}, got {values.device}")
        require(values.shape == rows.shape[:1], lambda: f"{name} must be [T] = [{len(rows)}], got {list(values.shape)}")
        if name == "response_mask":
            require(values.dtype == torch.bool, lambda: f"response_mask must be bool, got {values.dtype}")
            return values.contiguous()
        require(not values.is_complex(), lambda: f"{name} must be real, got {values.dtype}")
        return values.detach().to(dtype).contiguous()

    return fields.map(checked)._replace(cu_seqlens=cu_seqlens)


def _check_needs(fields: TokenFields, objective: Objective) -> None:
    require(isinstance(fields.advantages, Tensor), "advantages must be [T], one for every token")
    require(
        not objective.kl_coef or fields.ref_logprobs is not None,
        lambda: f"kl_coef {objective.kl_coef} needs ref_logprobs",
    )
    require(
        objective.correction == "none" or fields.rollout_logprobs is not None,
        lambda: f"the correction {objective.correction!r} needs rollout_logprobs",
    )
    require(
        not objective.needs_whole_responses or fields.cu_seqlens is not None,
        "a sequence-level ratio or mask needs cu_seqlens, the packed responses' boundaries",
    )


def boundaries(starts: Tensor, name: str, count: int) -> None:
    """Raises ValueError unless they run from 0 to ``count`` and never fall; unreadable values are not checked."""
    require(starts.dim() == 1 and not starts.is_floating_point(), lambda: f"{name} must be integers [S + 1]")
    if readable(starts):
        got = starts.tolist()
        require(
            len(got) > 0 and got[0] == 0 and got[-1] == count and got == sorted(got),
            lambda: f"{name} must run from 0 to {count} and never fall, got {str(got)[:60]}",
        )


def loss_token_count(
    num_loss_tokens: int | float | Tensor,
    rows: Tensor,  # of the device and dtype of the logprobs
) -> Tensor:  # []
    """The count on the device; a number gets there without the wait that a tensor on the host would mean.

    Raises ValueError for a count that is not one number above 0.
    """
    dtype = statistics_dtype(rows.dtype)
    if isinstance(num_loss_tokens, Tensor):
        require(num_loss_tokens.numel() == 1, "num_loss_tokens must be one number")
        if readable(num_loss_tokens):
            count = num_loss_tokens.item()
            require(0 < count < math.inf, lambda: f"num_loss_tokens must be above 0 and finite, got {count}")
        return num_loss_tokens.detach().to(rows.device, dtype).reshape(())
    require(
        0 < num_loss_tokens < math.inf, lambda: f"num_loss_tokens must be above 0 and finite, got {num_loss_tokens}"
    )
    return torch.full((), num_loss_tokens, device=rows.device, dtype=dtype)
