"""What the public functions refuse, in words, and how they take their inputs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastgrpo_kernels.primitives import LogitTransform, statistics_dtype

_FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def require(condition: bool, message: str | Callable[[], str]) -> None:
    """A message with numbers is a function: built on failure alone, and never while torch.compile traces."""
    if not condition:
        raise ValueError(message if isinstance(message, str) else message())


def head_inputs(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target_ids: Tensor
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """The four as the ops take them: under autocast in its dtype, as `F.linear` would; bias and ids contiguous.

    Raises ValueError for shapes, dtypes or devices that do not fit, and for a sharded weight.
    """
    sharded = [n for n, t in (("hidden", hidden), ("weight", weight), ("bias", bias)) if _is_sharded(t)]
    require(
        not sharded,
        lambda: (
            f"{sharded[0]} is a DTensor: call the op inside the forward of the module that FSDP2 wraps, where the "
            f"weight is whole, or pass {sharded[0]}.full_tensor()"
        ),
    )
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
    if torch.is_autocast_enabled(hidden.device.type) and hidden.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight, bias = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    require(
        hidden.dtype in _FLOATS and hidden.dtype == weight.dtype and (bias is None or bias.dtype == weight.dtype),
        lambda: (
            f"hidden, weight and bias must have one floating dtype, got {hidden.dtype}, {weight.dtype} and "
            f"{None if bias is None else bias.dtype}: cast them, or use autocast"
        ),
    )
    return hidden, weight, None if bias is None else bias.contiguous(), target_ids.contiguous()


def logit_transform(
    temperature: float | Tensor, softcap: float | None, num_rows: int, logits_dtype: torch.dtype
) -> LogitTransform:
    """Raises ValueError for a temperature that is not above 0, a wrong length, or a softcap that is not above 0."""
    require(
        softcap is None or 0 < softcap < 1e30, lambda: f"softcap must be above 0 and finite, or None, got {softcap}"
    )
    if isinstance(temperature, Tensor):
        require(
            temperature.shape == (num_rows,),
            lambda: f"temperature must be a float or one per token [{num_rows}], got {list(temperature.shape)}",
        )
        if temperature.device.type == "cpu" and not torch.compiler.is_compiling():  # a GPU would have to be waited for
            require(bool((temperature > 0).all()), "every token's temperature must be above 0")
        return LogitTransform(temperature.detach().to(statistics_dtype(logits_dtype)).contiguous(), softcap or 0.0)
    require(temperature > 0, lambda: f"temperature must be above 0, got {temperature}")
    return LogitTransform(float(temperature), softcap or 0.0)


def split_temperature(transform: LogitTransform) -> tuple[float, Tensor | None]:
    """As a custom op's schema takes it: a float and an optional tensor."""
    if isinstance(transform.temperature, Tensor):
        return 1.0, transform.temperature
    return transform.temperature, None


def token_field(
    values: Tensor | None, name: str, num_tokens: int, dtype: torch.dtype, device: torch.device
) -> Tensor | None:
    """One value per token, without gradient, in the dtype of the statistics."""
    if values is None:
        return None
    require(values.device == device, lambda: f"{name} must be on {device} as the logprobs are, is on {values.device}")
    require(values.shape == (num_tokens,), lambda: f"{name} must be [T] = [{num_tokens}], got {list(values.shape)}")
    return values.detach().to(dtype).contiguous()


def boundaries(starts: Tensor, name: str, count: int) -> None:
    """Raises ValueError unless they run from 0 to ``count`` and never fall; their values only on a CPU, which need not
    be waited for."""
    require(starts.dim() == 1 and not starts.is_floating_point(), lambda: f"{name} must be integers [S + 1]")
    if starts.device.type == "cpu" and not torch.compiler.is_compiling():
        found = starts.tolist()
        require(
            len(found) > 0 and found[0] == 0 and found[-1] == count and found == sorted(found),
            lambda: f"{name} must run from 0 to {count} and never fall, got {str(found)[:60]}",
        )


def ascending_rows(rows: Tensor, num_tokens: int) -> None:
    """Raises ValueError unless they are places of tokens in order; their values only on a CPU."""
    require(rows.dim() == 1 and rows.dtype == torch.int64, lambda: f"rows must be int64 [R], got {rows.dtype}")
    if rows.device.type == "cpu" and not torch.compiler.is_compiling() and len(rows):
        inside = int(rows[0]) >= 0 and int(rows[-1]) < num_tokens and bool((rows.diff() > 0).all())
        require(inside, lambda: f"rows must rise, from 0 on and below T = {num_tokens}, got {str(rows.tolist())[:60]}")


def _is_sharded(tensor: Any) -> bool:
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)
