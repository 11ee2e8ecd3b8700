"""vLLM's linear layers on a CPU, kept readable from their parameters.

After loading they compute from a packed copy, and the parameter is left without elements: a write would change nothing.
No setting of vLLM's keeps it, so its dispatch is wrapped, in the process that holds the layers and before they load.
"""

from collections.abc import Callable
from typing import Any, Literal, cast

import torch.nn.functional as F
from torch import nn

Mode = Literal["live", "repack"]

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

    original = utils.dispatch_cpu_unquantized_gemm
    if getattr(original, "of_fastgrpo", False):
        return

    def dispatch(layer: nn.Module, remove_weight: bool) -> None:
        weight: Any = layer.weight
        mode = (get_current_vllm_config().additional_config or {}).get(SETTING, "repack")
        if weight.is_meta or weight.ndim != 2:
            original(layer, remove_weight)
        elif mode == "live":
            layer.cpu_linear = F.linear  # type: ignore[assignment]
        else:
            original(layer, False)
            setattr(layer, _PACK, original)

    dispatch.of_fastgrpo = True  # type: ignore[attr-defined]
    utils.dispatch_cpu_unquantized_gemm = dispatch


def repack_of(model: nn.Module) -> Callable[[], None]:
    """What makes the packed copies of this model's layers anew."""
    packed = [m for m in model.modules() if hasattr(m, _PACK)]

    def repack() -> None:
        for layer in packed:
            getattr(layer, _PACK)(layer, False)

    return repack
