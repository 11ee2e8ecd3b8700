"""Tiny models on disk and a tokenizer of words, for the peers that load by path."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GraniteConfig,
    GraniteForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

Run = dict[str, torch.Tensor]  # what a run made, by name

VOCABULARY = 64
TOLERANCE = 1e-5
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
# A cap so low, and scales so far from 1, that a head without them is far off.
ARCHITECTURES = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"tie_word_embeddings": True}),
    "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM, {"head_dim": 8, "final_logit_softcapping": 1.5}),
    "cohere": (CohereConfig, CohereForCausalLM, {"logit_scale": 0.25}),
    "granite": (GraniteConfig, GraniteForCausalLM, {"logits_scaling": 3.0}),
}


def tiny_model(name: str = "qwen2") -> PreTrainedModel:
    """Always the same random weights for a name, float32, on no nearly uniform distribution."""
    config_class, model_class, extra = ARCHITECTURES[name]
    torch.manual_seed(0)
    model = model_class._from_config(config_class(**SHAPE, **extra), attn_implementation="sdpa")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 2 * (parameter.ndim > 1))
    return model


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w1"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w0", pad_token="w0")


def save(folder: Path, name: str = "qwen2") -> Path:
    """Model and tokenizer as `from_pretrained` reads them."""
    tiny_model(name).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def assert_close(got: Run, want: Run) -> None:
    """To 1e-5 of each tensor's norm: both are float32, and a wrong temperature, cap or row is off by far more."""
    assert got.keys() == want.keys()
    for name, expected in want.items():
        error, size = float((got[name] - expected).norm()), float(expected.norm())
        assert error <= TOLERANCE * size, f"{name}: off by {error:.2g} of {size:.2g}"
