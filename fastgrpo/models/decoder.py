"""The parts of a transformers causal LM that every model has, whatever it calls them."""

from typing import cast

from torch import nn
from transformers import PreTrainedModel


def decoder_of(model: PreTrainedModel) -> PreTrainedModel:
    """The decoder of text tokens, without the head: of a multimodal model the part that reads and writes text."""
    return cast(PreTrainedModel, model.get_decoder())


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """A decoder's layers, in the order of the forward pass. Raises ValueError for a model that has no list of them."""
    lists = [child for child in decoder_of(model).children() if isinstance(child, nn.ModuleList)]
    if not lists:
        raise ValueError(
            f"a {type(model).__name__} has no list of layers, which fastgrpo shards and recomputes one by one"
        )
    return max(lists, key=len)
