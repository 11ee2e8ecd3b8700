import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from fastgrpo.models.decoder import (
    attention_width,
    decoder_of,
    freeze_all_but_text,
    layers_of,
    weights_a_token_reads,
)
from fastgrpo.models.tiny import tiny_config


def model_of(name: str, **settings) -> PreTrainedModel:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(tiny_config(AutoConfig.for_model(name, **settings)))


@pytest.mark.parametrize(
    ("name", "decoder", "layer"),
    [
        ("llama", "LlamaModel", "LlamaDecoderLayer"),
        ("gemma3", "Gemma3TextModel", "Gemma3DecoderLayer"),  # a wrapper with a vision tower
        ("llama4_text", "Llama4TextModel", "Llama4TextDecoderLayer"),  # transformers finds the whole model
        ("modernbert-decoder", "ModernBertDecoderModel", "ModernBertDecoderLayer"),  # transformers finds the head
        ("gpt2", "GPT2Model", "GPT2Block"),
        ("bert", "BertModel", "BertLayer"),  # one room deeper
        ("opt", "OPTDecoder", "OPTDecoderLayer"),
        ("jetmoe", "JetMoeModel", "JetMoeDecoderLayer"),
    ],
)
def test_decoder_and_layers_are_found_whatever_they_are_called(name, decoder, layer):
    model = model_of(name)
    assert type(decoder_of(model)).__name__ == decoder
    assert {type(each).__name__ for each in layers_of(model)} == {layer}


def test_a_model_without_a_list_of_layers_is_refused():
    model = model_of("llama")
    del model.model.layers
    with pytest.raises(ValueError, match="no list of layers"):
        layers_of(model)


def test_only_the_text_of_a_multimodal_model_learns():
    model = model_of("gemma3")
    freeze_all_but_text(model)
    learning = {name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad}
    assert learning == {"language_model"}  # the head is tied to it
    assert any(not p.requires_grad for p in model.parameters())


def test_a_token_reads_the_weights_of_its_experts_and_no_embedding():
    llama = model_of("llama")
    config = llama.config
    d, f, kv = config.hidden_size, config.intermediate_size, config.num_key_value_heads * config.head_dim
    assert weights_a_token_reads(llama) == config.num_hidden_layers * d * (2 * d + 2 * kv + 3 * f)
    moe = model_of("qwen3_moe")
    experts = sum(p.numel() for n, p in moe.named_parameters() if "experts" in n)
    rest = sum(p.numel() for n, p in moe.model.layers.named_parameters() if "experts" not in n and p.dim() == 2)
    assert weights_a_token_reads(moe) == rest + experts * moe.config.num_experts_per_tok / moe.config.num_experts


def test_attention_is_as_wide_as_the_heads_of_the_layers_that_have_it():
    llama, hybrid = model_of("llama"), model_of("qwen3_next")
    assert attention_width(llama) == 2 * 2 * llama.config.hidden_size
    one = hybrid.config.num_attention_heads * hybrid.config.head_dim
    assert attention_width(hybrid) == 2 * one  # one layer of four
    assert attention_width(model_of("mamba")) == 0
