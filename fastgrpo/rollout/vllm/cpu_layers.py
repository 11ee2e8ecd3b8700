"""vLLM's linear layers and experts on a CPU, changed so that a write to their parameters takes effect.

After loading, vLLM's layers compute from a packed copy, and the parameter has no elements, or is the packed copy: a
write would change nothing, or all. No setting of vLLM keeps the parameter, so vLLM's dispatch function is wrapped, and
what packs experts, in the process that holds the layers and before they load. Experts have no kernel that reads
parameters: they are packed in both modes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, cast

import torch.nn.functional as F
from torch import nn

Mode = Literal["live", "repack"]
Dispatch = Callable[[nn.Module, bool], None]
"""Takes a linear layer, and whether packing removes its weight; sets ``cpu_linear``, which the layer calls."""

SETTING = "fastgrpo_cpu_layers"
"""Key of the mode in vLLM's ``additional_config``, which all workers get; without it the mode is repack."""

LIVE_BELOW_PARAMETERS = 100_000_000
"""Packed layers sample faster, but packing takes several times as long as the write: it pays for large models."""

BACKEND, WORKER = "fastgrpo", "WeightSyncWorker"
"""What an engine's configuration names if we write its weights: a backend of weight transfer, or a worker extension."""

_PACK = "fastgrpo_pack"
"""Attribute of a layer that computes from a packed copy: vLLM's function that makes it."""


def choose_mode(setting: str, num_parameters: int) -> Mode:
    """The mode of a setting. ``live``: layers read their parameter. ``repack``: they read a packed copy, which is made
    anew after every write."""
    if setting == "auto":
        return "live" if num_parameters < LIVE_BELOW_PARAMETERS else "repack"
    return cast(Mode, setting)


def install() -> None:
    """Wraps vLLM's dispatch function, for engines whose weights we write; others' layers stay as they are.

    Raises AttributeError if vLLM has no function of that name.
    """
    from vllm.model_executor.layers import utils

    if not getattr(utils.dispatch_cpu_unquantized_gemm, "of_fastgrpo", False):
        utils.dispatch_cpu_unquantized_gemm = wrapped(utils.dispatch_cpu_unquantized_gemm, _mode_of_engine)
    _install_for_experts()


def _mode_of_engine() -> Mode | None:
    """The mode of the engine that is being loaded; None if nobody will write its weights."""
    from vllm.config import get_current_vllm_config

    config = get_current_vllm_config()
    transfer = getattr(config.weight_transfer_config, "backend", None)
    is_ours = transfer == BACKEND or WORKER in str(config.parallel_config.worker_extension_cls)
    return (config.additional_config or {}).get(SETTING, "repack") if is_ours else None


def _install_for_experts() -> None:
    try:
        from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts as Kernel
    except ImportError:  # of other versions: weight_layout refuses their experts
        return
    if getattr(Kernel.process_weights_after_loading, "of_fastgrpo", False):
        return
    original, apply = Kernel.process_weights_after_loading, Kernel.apply

    def keep_and_pack(kernel: Any, layer: Any) -> None:
        if _mode_of_engine() is None:
            return original(kernel, layer)
        layer.fastgrpo_pack_experts = partial(_pack_experts, original, kernel, layer)
        layer.fastgrpo_pack_experts()

    def apply_packed(kernel: Any, *given: Any, **named: Any) -> None:
        apply(kernel, *given, **{**named, **getattr(kernel, "fastgrpo_packed", {})})

    keep_and_pack.of_fastgrpo = True  # type: ignore[attr-defined]
    Kernel.process_weights_after_loading, Kernel.apply = keep_and_pack, apply_packed


def _pack_experts(pack: Callable[[Any, Any], None], kernel: Any, layer: Any) -> None:
    """Lets vLLM pack the experts' weights, keeps the copy for the kernel, and gives the layer its parameters back."""
    held = {name: getattr(layer, name) for name in ("w13_weight", "w2_weight")}
    pack(kernel, layer)
    kernel.fastgrpo_packed = {"w1": layer.w13_weight.data, "w2": layer.w2_weight.data}
    for name, parameter in held.items():
        setattr(layer, name, parameter)


def wrapped(original: Dispatch, mode: Callable[[], Mode | None]) -> Dispatch:
    """The function that replaces vLLM's dispatch: linear layers' parameters keep their storage, dtype and values."""

    def dispatch(layer: Any, remove_weight: bool) -> None:
        chosen = mode()
        if chosen is None or layer.weight.is_meta or layer.weight.ndim != 2:
            original(layer, remove_weight)
        elif chosen == "live":
            layer.cpu_linear = F.linear
        else:
            setattr(layer, _PACK, original)
            _pack(layer)

    dispatch.of_fastgrpo = True  # type: ignore[attr-defined]
    return dispatch


def repack_of(model: nn.Module) -> Callable[[], None]:
    """A function that makes the packed copies of this model's layers anew."""
    packed = [m for m in model.modules() if hasattr(m, _PACK)]
    experts: list[Any] = [m for m in model.modules() if hasattr(m, "fastgrpo_pack_experts")]

    def repack() -> None:
        for layer in packed:
            _pack(layer)
        for layer in experts:
            layer.fastgrpo_pack_experts()

    return repack


def _pack(layer: Any) -> None:
    """Packs a layer's weight, and keeps its bias.

    On a CPU with bfloat16 tiles vLLM also converts the bias to float32, in place. Then the layer computes from that
    copy, and the parameter gets its own values back.
    """
    bias: Any = getattr(layer, "bias", None)
    held = None if bias is None else bias.data
    getattr(layer, _PACK)(layer, False)
    if held is not None and bias.dtype != held.dtype:
        copied, bias.data, linear = bias.data, held, layer.cpu_linear
        layer.cpu_linear = lambda x, weight, given: linear(x, weight, None if given is None else copied)
