"""The parts of a transformers causal LM that every model has, whatever it calls them."""

from typing import Any

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
    raise ValueError(f"a {type(model).__name__} has no list of layers, which fastgrpo shards and recomputes one by one")


def freeze_all_but_text(model: PreTrainedModel) -> None:
    """Lets only the decoder and the head learn: what a multimodal model sees and hears with, no text teaches."""
    text = {*decoder_of(model).parameters()}
    head = model.get_output_embeddings()
    text |= set() if head is None else {*head.parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.requires_grad and parameter in text)


def weights_a_token_reads(model: PreTrainedModel) -> float:
    """How many of a decoder's weights a token is multiplied with. Of experts these are as many as it is sent to, where
    the configuration says how many; embeddings and the head are none of them."""
    decoder = decoder_of(model)
    config: Any = decoder.config
    read = next((n for name in _EXPERTS_OF_A_TOKEN if isinstance(n := getattr(config, name, None), int)), None)
    looked_up = {id(p) for m in decoder.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    total = 0.0
    for parameter in decoder.parameters():
        if parameter.dim() < 2 or id(parameter) in looked_up:
            continue
        experts = parameter.shape[0] if parameter.dim() == 3 and read else 1
        total += parameter.numel() * min(1.0, (read or 1) / experts)
    return total


def attention_width(model: PreTrainedModel) -> int:
    """The widths of all heads of all layers, of queries and values together; 0 where the configuration has no heads."""
    config: Any = decoder_of(model).config
    heads = getattr(config, "num_attention_heads", None)
    if not isinstance(heads, int):
        return 0
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    value = getattr(config, "v_head_dim", None) or head
    query = getattr(config, "qk_head_dim", None) or head
    kinds = getattr(config, "layer_types", None)
    num_layers = len(layers_of(model)) if not kinds else sum("linear" not in k and "attention" in k for k in kinds)
    return num_layers * heads * (query + value)


_EXPERTS_OF_A_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts")
