"""What weights are called: in transformers' own model, which trains, and on the hub, whose names vLLM loads.

From version 5 on, transformers renames as it loads, and makes one tensor of a layer's experts.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fastgrpo.rollout.weight_sync.live_weights import LayoutError


def renaming(model_type: str) -> Callable[[str], str]:
    """From the hub's names to those of transformers' model. Fused tensors are not its business."""
    try:
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping
        from transformers.core_model_loading import WeightRenaming
    except ImportError:  # before version 5
        return lambda name: name
    steps = get_checkpoint_conversion_mapping(model_type) or []
    renamings = [step for step in steps if isinstance(step, WeightRenaming)]

    def renamed(name: str) -> str:
        for step in renamings:
            name = step.rename_source_key(name)[0]
        return name

    return renamed


def trained_model(hf_config: Any) -> nn.Module | None:
    """transformers' model of a configuration on the meta device; None if transformers has none."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(hf_config)
    except Exception:  # of code that comes with a model, or another version's
        return None


def require_same_names(places: Iterable[str], model: nn.Module | None) -> None:
    """Raises LayoutError unless these are the names of the model's weights."""
    known = None if model is None else {name for name, _ in model.named_parameters()}
    if known is not None and (different := known ^ set(places)):
        raise LayoutError(f"vLLM has other names for the weights of this model, such as {min(different)}")


def hub_named(weights: Iterable[tuple[str, Tensor]], model: nn.Module | None) -> Iterator[tuple[str, Tensor]]:
    """The same weights under the hub's names and in its shapes, as ``save_pretrained`` would write them.

    One after the other where each hub tensor is made of one weight, else all together.
    """
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:
        model = None
    if model is None:
        yield from weights
        return
    revert: Callable[[Any, dict[str, Tensor]], dict[str, Tensor]] = revert_weight_conversion
    shapes: dict[str, Tensor] = dict(model.named_parameters())
    alone = {n: t.shape for name, value in shapes.items() for n, t in revert(model, {name: value}).items()}
    if alone == {n: t.shape for n, t in revert(model, shapes).items()}:
        for name, value in weights:
            yield from revert(model, {name: value}).items()
    else:
        yield from revert(model, dict(weights)).items()
