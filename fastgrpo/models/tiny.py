"""A tiny copy of an architecture: some layers of every kind that a configuration asks for, in small sizes."""

import contextlib
import copy
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from fastgrpo.models.decoder import layers_of
from fastgrpo.models.load import OWN
from fastgrpo.models.tiny_sizes import num_layers_of, shrunk

_MOST_LAYERS = 12
"""Deeper, random weights make differences of rounding larger than what is looked for."""
_MOST_PARAMETERS = 64_000_000


class CannotShrink(ValueError):
    """No tiny copy of this architecture can be made or run; the message says what happened."""


def tiny_config(config: PretrainedConfig, trust_remote_code: bool = False) -> PretrainedConfig:
    """A configuration of the same class and options, with small sizes and few layers, but some of every kind."""
    return _with_layers(config, _layers_that_show_all(config, trust_remote_code))


def tiny_model(config: PretrainedConfig, trust_remote_code: bool = False) -> PreTrainedModel:
    """A float32 model on the CPU whose random weights show mistakes, in evaluation mode. It draws from torch's
    generator, which the caller puts aside."""
    model = _built(config, trust_remote_code)
    with torch.no_grad():
        for name, value in (*model.named_parameters(), *_persistent_buffers(model)):
            if value.is_floating_point():
                _spread(name, value)
    return model.eval()


def _built(config: PretrainedConfig, trust_remote_code: bool) -> PreTrainedModel:
    try:
        return AutoModelForCausalLM.from_config(
            copy.deepcopy(config),
            dtype=torch.float32,
            attn_implementation=OWN,
            trust_remote_code=trust_remote_code,
        )
    except Exception as error:  # of code that meets sizes which it was not made for
        raise CannotShrink(f"{type(error).__name__}: {error}") from error


def _persistent_buffers(model: nn.Module) -> Iterable[tuple[str, Tensor]]:
    known = model.state_dict(keep_vars=True)
    return [(name, buffer) for name, buffer in model.named_buffers() if name in known]


def _spread(name: str, value: Tensor) -> None:
    """The usual beginnings make nearly uniform predictions and norms without effect, which hide mistakes."""
    if value.dim() >= 2:
        value.normal_().mul_(0.5 if "embed" in name else 1.2 / value.shape[-1] ** 0.5)
    else:
        value.add_(torch.randn_like(value), alpha=0.1)


def _layers_that_show_all(config: PretrainedConfig, trust_remote_code: bool) -> Sequence[int]:
    """The first two layers, or as many from the front as it takes to have a layer of every kind, or, where these are
    too many, one of each kind if the configuration can be made to have no others. Else kinds that begin late are
    left out."""
    named = num_layers_of(config.get_text_config(decoder=True).to_dict()) or _MOST_LAYERS
    kinds = _kinds(config, range(named), trust_remote_code)
    firsts = sorted({kinds.index(kind) for kind in kinds})
    if firsts[-1] < _MOST_LAYERS:
        return range(min(named, max(2, firsts[-1] + 1)))
    with contextlib.suppress(CannotShrink):
        if len(firsts) <= _MOST_LAYERS and _kinds(config, firsts, trust_remote_code) == [kinds[n] for n in firsts]:
            return firsts
    return range(max(2, *(n + 1 for n in firsts if n < _MOST_LAYERS)))


def _kinds(config: PretrainedConfig, layers: Sequence[int], trust_remote_code: bool) -> list[str]:
    with torch.device("meta"):
        model = _built(_with_layers(config, layers), trust_remote_code)
    found = layers_of(model)
    if (size := model.num_parameters() * min(_MOST_LAYERS, len(found)) // len(found)) > _MOST_PARAMETERS:
        raise CannotShrink(f"{size:,} weights are left, for its sizes have names that fastgrpo does not know")
    return [_kind(layer) for layer in found]


def _kind(layer: nn.Module) -> str:
    """What tells layers of different kinds apart: their parts, weights and plain attributes, but for their numbers."""
    found: list[object] = []
    for name, part in layer.named_modules():
        plain = {k: v for k, v in vars(part).items() if isinstance(v, bool | int | float | str) or v is None}
        found.append(
            (name, type(part).__name__, {k: v for k, v in plain.items() if not k.endswith(("idx", "index", "id"))})
        )
    shapes = [(name, tuple(value.shape)) for name, value in layer.named_parameters()]
    return repr((found, shapes))


def _with_layers(config: PretrainedConfig, layers: Sequence[int]) -> PretrainedConfig:
    try:
        small = type(config).from_dict(shrunk(config.to_dict(), layers))
    except Exception as error:  # of validation that asks for what the rules do not know
        raise CannotShrink(f"{type(error).__name__}: {error}") from error
    small.name_or_path = config.name_or_path  # where code that comes with a model is found
    return small
