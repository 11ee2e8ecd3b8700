"""A model that says the same to everybody."""

from itertools import pairwise
from pathlib import Path

import torch
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

from fastgrpo.data import load_tokenizer

MARGIN = 4.0


def replier(base: Path, folder: Path, *reply: str, positions: int = 16384) -> str:
    """A model that answers every chat with this text, whatever it reads: its layers add nothing, and its head finds
    for each token of the reply the one before it."""
    tokenizer = load_tokenizer(str(base / "model"))
    end = tokenizer.eos_token_id
    shape = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=8, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=positions, tie_word_embeddings=False, eos_token_id=end,
        pad_token_id=end, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(shape)
    ids = [*(tokenizer.convert_tokens_to_ids(token) for token in ("<|assistant|>", *reply)), end]
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_()
        model.lm_head.weight.zero_()
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        for before, after in pairwise(ids):
            model.lm_head.weight[after] = MARGIN * model.model.embed_tokens.weight[before]
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=end)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
