"""The files of a model's weights -> a model with every weight in it, or a refusal that names what is wrong."""

import os
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

MAX_NAMES = 5
_FLOATS = {"F64", "F32", "F16", "BF16"}
_LAYER = re.compile(r"(?P<layer>.*?\.\d+)\.(?P<rest>.+)")


def read_weights(path: str, **how: Any) -> PreTrainedModel:
    """``AutoModelForCausalLM.from_pretrained(path, **how)`` of files that hold this model whole.

    transformers draws at random what is missing, and leaves out what it does not know. Raises ValueError, naming the
    tensors, where one is missing, has the shape of another configuration, is not finite, or belongs to a layer that
    would be computed without it; and for files that cannot be read. What belongs to other parts, as to a vision tower,
    is said.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what its report says, the errors below say
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path, output_loading_info=True, ignore_mismatched_sizes=True, **how
        )
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of transformers, safetensors, torch and json: no common base class
        raise ValueError(f"the weights of {path} cannot be loaded: {_reason(path, error)}") from error
    finally:
        logging.set_verbosity(verbosity)
    model, found = loaded
    if shapes := found["mismatched_keys"]:
        given = [f"{name} {list(there)} for {list(needed)}" for name, there, needed in sorted(shapes)]
        raise ValueError(
            f"the weights of {path} have other shapes than its config.json needs: {_listed(given)}. Give the "
            f"configuration that belongs to the weights"
        )
    if missing := sorted(found["missing_keys"]):
        raise ValueError(
            f"the weights of {path} lack {_listed(missing)}, which would be drawn at random: is a file missing, or is "
            f"config.json another model's?"
        )
    _check_unexpected(model, path, sorted(found["unexpected_keys"]))
    _check_whole_numbers(model, path)
    _check_finite(model, path)
    return model


def _reason(path: str, error: Exception) -> str:
    """What is wrong, in a line. Of several files the one is named that safetensors cannot open."""
    if file := next(_unreadable(path), ""):
        return f"{file} is cut short or damaged ({_first_line(error)}). Get it anew"
    if "weights_only" in str(error) or type(error).__name__ == "UnpicklingError":
        return (
            "its .bin file holds Python objects besides tensors, or is damaged, and is not executed. Take the "
            "model's safetensors"
        )
    return f"{type(error).__name__}: {_first_line(error)}"


def _unreadable(path: str) -> Iterator[Path]:
    for file in sorted(Path(path).glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError):
            yield file


def _check_unexpected(model: PreTrainedModel, path: str, names: list[str]) -> None:
    modules = dict(model.named_modules())
    wrong = [n for n in names if _is_of_a_layer(n, modules)] + _extra_layers(names, model)
    if wrong:
        raise ValueError(
            f"the weights of {path} have {_listed(wrong)}, which the model of its config.json would leave out: give "
            f"the configuration that belongs to the weights"
        )
    if names:
        _say(f"fastgrpo: note: {path} holds {_listed(names)}, which are no part of its language model and are left out")


def _is_of_a_layer(name: str, modules: dict[str, torch.nn.Module]) -> bool:
    """Whether the nearest module that there is lies in a layer, or holds weights itself: it needs all of them."""
    parent = name
    while parent:
        parent = parent.rpartition(".")[0]
        if parent in modules:
            module = modules[parent]
            own = next(module.parameters(recurse=False), None) is not None
            return own or (_LAYER.match(f"{parent}.") is not None or re.search(r"\.\d+$", parent) is not None)
    return False


def _extra_layers(names: list[str], model: PreTrainedModel) -> list[str]:
    """Tensors of layers beyond the last one that have the names of a layer: the configuration has too few. A layer of
    another kind, as for the prediction of several tokens, has others too."""
    usual = {match["rest"] for name, _ in model.named_parameters() if (match := _LAYER.match(name))}
    found = [match for name in names if (match := _LAYER.match(name))]
    of_another_kind = {match["layer"] for match in found if match["rest"] not in usual}
    return [match[0] for match in found if match["layer"] not in of_another_kind]


def _check_whole_numbers(model: PreTrainedModel, path: str) -> None:
    """Refuses quantized weights that no configuration calls so: transformers would take their codes for values."""
    if getattr(model, "hf_quantizer", None) is not None:
        return
    for file in sorted(Path(path).glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                if name.endswith(".weight") and (kind := tensors.get_slice(name).get_dtype()) not in _FLOATS:
                    raise ValueError(
                        f"the weights of {path} are quantized ({name} is {kind}), and its config.json has no "
                        f"quantization_config that says how: take whole ones"
                    )


def _check_finite(model: PreTrainedModel, path: str) -> None:
    tensors = ((n, p.detach()) for n, p in model.named_parameters() if p.is_floating_point() and p.numel())
    broken = [name for name, tensor in tensors if not tensor.is_meta and not _is_finite(tensor)]
    if broken:
        raise ValueError(
            f"the weights of {path} have NaN or infinity in {_listed(broken)} (as {model.dtype}): a damaged file, or a "
            f"run that diverged. Take others"
        )


def _is_finite(tensor: torch.Tensor) -> bool:
    least, largest = torch.aminmax(tensor)  # NaN goes through both, and no mask is made
    return bool(torch.isfinite(least) & torch.isfinite(largest))


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


@cache
def _say(text: str) -> None:
    """Once, although a model is loaded on every rank, to be trained and to be sampled from."""
    if os.environ.get("RANK", "0") == "0":
        print(text, flush=True)
