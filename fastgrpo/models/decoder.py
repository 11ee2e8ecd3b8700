"""The parts of a transformers causal LM that every model has, whatever it calls them."""

from torch import nn
from transformers import PreTrainedModel


def decoder_of(model: PreTrainedModel) -> PreTrainedModel:
    """The decoder of text tokens, without the head: of a multimodal model the part that reads and writes text.

    Raises ValueError for a model that is not a head on a decoder.
    """
    # transformers looks by name, and for some models finds the head or the model itself.
    for found in (model.get_decoder(), model.base_model, *model.children()):
        if isinstance(found, PreTrainedModel) and found is not model:
            return found
    raise ValueError(f"a {type(model).__name__} has no decoder under its head that fastgrpo can find")


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """A decoder's layers, in the order of the forward pass: the longest list of modules that lies in no other list.

    Raises ValueError for a model that has none.
    """
    level: list[nn.Module] = [decoder_of(model)]
    while level:
        below = [child for module in level for child in module.children()]
        lists = [child for child in below if isinstance(child, nn.ModuleList) and len(child)]
        if lists:
            return max(lists, key=len)
        level = below
    raise ValueError(
        f"a {type(model).__name__} has no list of layers, which fastgrpo shards and recomputes one by one"
    )
