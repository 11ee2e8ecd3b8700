"""Tiny random models and made-up responses."""

from typing import Any

import numpy as np
import torch
import transformers
from transformers import PreTrainedModel

from fastgrpo.algorithm import Outcomes
from fastgrpo.models.load import one_expert_at_a_time
from fastgrpo.types import Prompt, Response, Sample

NO_LENGTHS = np.zeros(0, np.int64)
VOCABULARY = 61
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "bos_token_id": None,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LATENT = {  # queries of 16, values of 12
    "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 12, "head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "llama": ("Llama", {"tie_word_embeddings": False}),
    "mistral": ("Mistral", {"tie_word_embeddings": False, "sliding_window": 7}),
    "qwen3_moe": ("Qwen3Moe", {"head_dim": 8, **EXPERTS}),
    "gemma2": ("Gemma2", {"head_dim": 8, "sliding_window": 5, "attn_logit_softcapping": 2.0}),
    "gpt_oss": ("GptOss", {"head_dim": 8, "sliding_window": 5, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "deepseek_v3": ("DeepseekV3", LATENT),
    "stablelm": ("StableLm", {}),
    "bloom": ("Bloom", {}),
}


def tiny_model(name: str = "qwen2", attention: str = "sdpa", dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Always the same random weights for a name."""
    class_name, extra = ARCHITECTURES[name]
    config = getattr(transformers, f"{class_name}Config")(**{**SHAPE, **extra})
    config._attn_implementation = attention
    torch.manual_seed(0)
    model = getattr(transformers, f"{class_name}ForCausalLM")(config)
    with torch.no_grad():  # the usual initialisation makes nearly uniform predictions, which hide mistakes
        for parameter in model.parameters():
            parameter.mul_(3.0)
    if dtype == torch.float64:
        _replace_norms(model)
        one_expert_at_a_time(model)
    return model.to(dtype).eval()


def _replace_norms(model: PreTrainedModel) -> None:
    """transformers' RMSNorm rounds to float32 whatever its input, which hides what float64 is used to see."""
    for parent in list(model.modules()):
        for name, norm in parent.named_children():
            if type(norm).__name__.endswith("RMSNorm"):
                exact = torch.nn.RMSNorm(norm.weight.shape, eps=norm.variance_epsilon)
                exact.weight = norm.weight
                setattr(parent, name, exact)


def prompts(count: int, seed: int = 0) -> list[Prompt]:
    random = np.random.default_rng(seed)
    return [
        Prompt.of_ids(random.integers(1, VOCABULARY, random.integers(3, 12)).astype(np.int32), i) for i in range(count)
    ]


def sequences(count: int, seed: int = 0, longest: int = 24) -> list[Sample]:
    """Ragged sequences with advantages of both signs and old logprobs near a uniform guess."""
    random = np.random.default_rng(seed)

    def one(prompt: Prompt) -> Sample:
        ids = random.integers(0, VOCABULARY, random.integers(1, longest)).astype(np.int32)
        logprobs = random.normal(-4.0, 0.3, len(ids)).astype(np.float32)
        return Sample(
            Prompt.of_ids(prompt.prompt_ids), Response(ids, logprobs, "stop", 0), advantage=float(random.normal())
        )

    return [one(p) for p in prompts(count, seed)]


def groups_of(size: int, lengths: np.ndarray = NO_LENGTHS) -> Outcomes:
    """What a recipe's function sees of responses of these lengths: none right, none truncated."""
    none = np.zeros(len(lengths), bool)
    return outcomes_of(none, lengths, none, max_response_tokens=100, group_size=size)


def outcomes_of(
    correct: np.ndarray,
    lengths: np.ndarray,
    truncated: np.ndarray,
    max_response_tokens: int,
    group_size: int,
    step: int = 0,
) -> Outcomes:
    """What a recipe's function sees of responses that were judged right or wrong and taught all."""
    return Outcomes(
        correct=correct,
        scores=correct.astype(np.float64),
        teaches=np.ones(len(lengths), bool),
        parts={},
        lengths=lengths,
        num_sampled=lengths,
        truncated=truncated,
        max_response_tokens=max_response_tokens,
        group_size=group_size,
        step=step,
        seed=1,
    )
