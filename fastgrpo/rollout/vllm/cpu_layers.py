"""vLLM's linear layers on a CPU, kept readable from their parameters.

After loading they compute from a packed copy, and the parameter is left without elements: a write would change nothing.
No setting of vLLM's keeps it, so its dispatch is wrapped, in the process that holds the layers and before they load.
"""

from collections.abc import Callable
from typing import Any, Literal, cast

import torch.nn.functional as F
from torch import nn

Mode = Literal["live", "repack"]
Dispatch = Callable[[nn.Module, bool], None]
"""Given a linear layer, and whether its weight goes once it is packed: sets ``cpu_linear``, which the layer calls."""

SETTING = "fastgrpo_cpu_layers"
"""Key of the mode in vLLM's ``additional_config``, which reaches its workers wherever they run; without it, repack."""

LIVE_BELOW_PARAMETERS = 100_000_000
"""Packed layers sample faster and repacking takes several times the write: worth it for large models."""

_PACK = "fastgrpo_pack"
"""Attribute of a layer that computes from a packed copy: vLLM's function that makes it."""


def choose_mode(setting: str, num_parameters: int) -> Mode:
    """``live``: layers read their parameter. ``repack``: they read a packed copy, made anew after a write."""
    if setting == "auto":
        return "live" if num_parameters < LIVE_BELOW_PARAMETERS else "repack"
    return cast(Mode, setting)


def install() -> None:
    """Wraps vLLM's dispatch. Raises AttributeError where a version of vLLM has none of that name."""
    from vllm.config import get_current_vllm_config
    from vllm.model_executor.layers import utils

    if not getattr(utils.dispatch_cpu_unquantized_gemm, "of_fastgrpo", False):
        utils.dispatch_cpu_unquantized_gemm = wrapped(
            utils.dispatch_cpu_unquantized_gemm,
            lambda: (get_current_vllm_config().additional_config or {}).get(SETTING, "repack"),
        )


def wrapped(original: Dispatch, mode: Callable[[], Mode]) -> Dispatch:
    """What stands for vLLM's dispatch, so that a linear layer's parameters keep their storage, dtype and values."""

    def dispatch(layer: Any, remove_weight: bool) -> None:
        if layer.weight.is_meta or layer.weight.ndim != 2:
            original(layer, remove_weight)
        elif mode() == "live":
            layer.cpu_linear = F.linear
        else:
            setattr(layer, _PACK, original)
            _pack(layer)

    dispatch.of_fastgrpo = True  # type: ignore[attr-defined]
    return dispatch


def repack_of(model: nn.Module) -> Callable[[], None]:
    """What makes the packed copies of this model's layers anew."""
    packed = [m for m in model.modules() if hasattr(m, _PACK)]

    def repack() -> None:
        for layer in packed:
            _pack(layer)

    return repack


def _pack(layer: Any) -> None:
    """On a CPU that multiplies bfloat16 tiles vLLM also turns the bias into float32, in place. The layer computes from
    that copy; the parameter is given back what it held."""
    bias: Any = getattr(layer, "bias", None)
    held = None if bias is None else bias.data
    getattr(layer, _PACK)(layer, False)
    if held is not None and bias.dtype != held.dtype:
        copied, bias.data, linear = bias.data, held, layer.cpu_linear
        layer.cpu_linear = lambda x, weight, given: linear(x, weight, None if given is None else copied)
