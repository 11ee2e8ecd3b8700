"""Whether an export is what was trained: it is loaded back and compared, tensor by tensor."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

_OF_A_FOLDER = {"architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path", "use_cache"}
"""What a configuration says of its file and of how it is used, and not of what the model computes."""

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

Shapes = dict[str, tuple[int, ...]]


def shapes_in(folder: Path) -> Shapes:
    """The shape of every tensor in a model's safetensors files, by name; none is loaded."""
    files = {WEIGHTS}
    if (folder / INDEX).exists():
        files = set(json.loads((folder / INDEX).read_text())["weight_map"].values())
    shapes: Shapes = {}
    for file in files:
        if not (folder / file).exists():  # weights of another kind
            continue
        with safe_open(folder / file, "pt") as tensors:
            shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    return shapes


def reload_differences(
    folder: Path, weights: Mapping[str, Tensor], model: PreTrainedModel, trust_remote_code: bool
) -> list[str]:
    """In what the model that an export loads to differs from ``model`` with these weights, which has its names; empty
    if in nothing: class, configuration, every weight and every buffer are the same, so that its logits are.

    It takes the memory of the weights in float32, which is the dtype that a thread can load in without changing the
    default dtype of all.
    """
    disable_progress_bar()  # of loading, which would run through the display of steps
    result: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, trust_remote_code=trust_remote_code
    )
    loaded, info = result
    found = [f"{kind.replace('_', ' ')}: {some(names)}" for kind, names in info.items() if names]
    if type(loaded).__name__ != type(model).__name__:
        found.append(f"it is a {type(loaded).__name__}, and a {type(model).__name__} was trained")
    found += _differing(_facts(loaded), _facts(model), "configuration")
    state, buffers = loaded.state_dict(), dict(loaded.named_buffers())
    others = {n: b.detach().cpu() for n, b in model.named_buffers() if n not in weights}
    for name, tensor in (*weights.items(), *others.items()):
        other = state.get(name, buffers.get(name))
        if other is None or not _equal(tensor, other):
            found.append(f"{name} is {'missing' if other is None else 'another tensor'}")
    return found


def _equal(tensor: Tensor, other: Tensor) -> bool:
    if not tensor.is_floating_point():
        return torch.equal(tensor, other)
    return tensor.shape == other.shape and torch.allclose(tensor.float(), other.float(), rtol=0, atol=0, equal_nan=True)


def _facts(model: PreTrainedModel) -> dict[str, Any]:
    return dict(_flat(model.config.to_dict()))


def _flat(facts: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in facts.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{path}{name}.")
        elif name not in _OF_A_FOLDER:
            yield f"{path}{name}", value


def _differing(loaded: Mapping[str, Any], trained: Mapping[str, Any], what: str) -> list[str]:
    names = sorted(n for n in loaded.keys() | trained.keys() if loaded.get(n) != trained.get(n))
    return [f"{what} {n}: {loaded.get(n)} there, {trained.get(n)} in training" for n in names]


def some(names: Iterable[Any]) -> str:
    """The first of these names, and how many more there are."""
    chosen = sorted(str(n) for n in names)
    return ", ".join(chosen[:5]) + (f" and {len(chosen) - 5} more" if len(chosen) > 5 else "")
