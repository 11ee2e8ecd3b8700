"""Small models for vLLM's CPU attention, their weights drawn anew, and what vLLM's fused parameters must then hold."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from fastgrpo.policy.packing import pack
from fastgrpo.policy.policy import Policy
from fastgrpo.rollout.generate import requests_of
from fastgrpo.rollout.vllm.engine import VllmEngine, VllmSettings
from fastgrpo.types import Group, Prompt, Request, Response, Sample, Sampling

Weights = dict[str, Tensor]  # by checkpoint name, float32

VOCABULARY = 300  # vLLM pads it to 320 rows
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "bos_token_id": None,
}
ARCHITECTURES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "qwen2_tied": (Qwen2Config, Qwen2ForCausalLM, {"tie_word_embeddings": True}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"tie_word_embeddings": False}),
    "llama": (LlamaConfig, LlamaForCausalLM, {"tie_word_embeddings": False}),
    "mistral": (MistralConfig, MistralForCausalLM, {"tie_word_embeddings": False, "sliding_window": 96}),
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True}
MIXTURES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "qwen3_moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM, {"head_dim": 32, **EXPERTS}),
    "qwen2_moe": (Qwen2MoeConfig, Qwen2MoeForCausalLM, {"shared_expert_intermediate_size": 96, **EXPERTS}),
    "mixtral": (MixtralConfig, MixtralForCausalLM, {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "olmoe": (OlmoeConfig, OlmoeForCausalLM, {"num_experts": 4, "num_experts_per_tok": 2}),
}
EVERY = {**ARCHITECTURES, **MIXTURES}
HUB_NAMES = ("mlp", "gate_proj", "up_proj", "down_proj")


def config_of(name: str, **changes: Any) -> Any:
    config_class, _, extra = EVERY[name]
    return config_class(**{**SHAPE, **extra, **changes})


def random_weights(name: str, seed: int, **changes: Any) -> Weights:
    """Every tensor at random: biases too, norms around 1, and no nearly uniform predictions."""
    with torch.device("meta"):
        shapes = {n: p.shape for n, p in EVERY[name][1](config_of(name, **changes)).named_parameters()}
    random = torch.Generator().manual_seed(seed)

    def draw(weight: str, shape: torch.Size) -> Tensor:
        values = torch.randn(shape, generator=random)
        return 1 + 0.1 * values if "norm" in weight else 0.1 * values

    return {n: draw(n, shape) for n, shape in shapes.items()}


def model_with(name: str, weights: Weights, attention: str = "sdpa", **changes: Any) -> PreTrainedModel:
    config = config_of(name, **changes)
    config._attn_implementation = attention
    model = EVERY[name][1](config)
    with torch.no_grad():
        for n, p in model.named_parameters():
            p.copy_(weights[n])
    return model.eval()


def save(folder: Path, name: str, weights: Weights, dtype: torch.dtype = torch.float32, **changes: Any) -> str:
    model_with(name, weights, **changes).to(dtype).save_pretrained(folder)
    return str(folder)


def start(path: str, dtype: torch.dtype = torch.float32, cpu_layers: str = "live", **settings: Any) -> VllmEngine:
    basics = {
        "path": path,
        "dtype": str(dtype).removeprefix("torch."),
        "max_model_len": 512,
        "max_sequences": 32,
        "cpu_layers": cpu_layers,
        "enforce_eager": True,
    }
    return VllmEngine(VllmSettings(**{**basics, **settings}))


def prompts(count: int, longest: int = 12, seed: int = 0, first: int = 0) -> list[Prompt]:
    random = np.random.default_rng(seed)
    return [
        Prompt.of_ids(random.integers(1, VOCABULARY, random.integers(3, longest + 1)).astype(np.int32), first + i)
        for i in range(count)
    ]


def drawn(engine: VllmEngine, requests: Iterable[Request]) -> dict[int, Response]:
    """Responses by request id, after the engine has come to rest."""
    engine.submit(list(requests))
    return rest_of(engine)


def rest_of(engine: VllmEngine) -> dict[int, Response]:
    responses: dict[int, Response] = {}
    while engine.is_unfinished():
        responses.update(engine.step())
    return responses


def responses_of(engine: VllmEngine, count: int, sampling: Sampling) -> list[Response]:
    responses = drawn(engine, requests_of(prompts(count), sampling))
    return [responses[i] for i in sorted(responses)]


def in_flight(
    engine: VllmEngine, first_id: int, sampling: Sampling, ended: dict[int, Response], at_most: int = 4
) -> int:
    """Draws a token for every request, after another has begun where there are fewer than so many: they end one by one.
    Returns the first id that is free."""
    missing = min(1, at_most - len(engine._drawing))
    engine.submit(requests_of(prompts(missing, seed=first_id, first=first_id), sampling, first_id))
    ended.update(engine.step())
    return first_id + missing


def parameters(engine: VllmEngine) -> list[Weights]:
    """Copies of vLLM's own parameters, for each of its processes."""
    return engine._rpc(parameters_of_worker)


def parameters_of_worker(worker: Any) -> Weights:
    return {n: p.data.clone() for n, p in worker.model_runner.get_model().named_parameters()}


def laid_out(weights: Weights, key_heads: int = 2, rank: int = 0, size: int = 1) -> Weights:
    """vLLM's parameters for a checkpoint: q, k, v and gate, up in one, vocabularies padded, everything sharded."""
    out: Weights = {}
    for name, value in weights.items():
        prefix, _, leaf = name.rpartition(".")
        parent, _, own = prefix.rpartition(".")
        match own:
            case "q_proj":
                holders = max(1, size // key_heads)  # processes that hold the same key heads
                parts = [value.chunk(size)[rank]]
                for member in ("k_proj", "v_proj"):
                    parts.append(weights[f"{parent}.{member}.{leaf}"].chunk(size // holders)[rank // holders])
                out[f"{parent}.qkv_proj.{leaf}"] = torch.cat(parts)
            case "gate_proj":
                up = weights[f"{parent}.up_proj.{leaf}"]
                out[f"{parent}.gate_up_proj.{leaf}"] = torch.cat([value.chunk(size)[rank], up.chunk(size)[rank]])
            case "k_proj" | "v_proj" | "up_proj":
                pass
            case "o_proj" | "down_proj":
                out[name] = value.chunk(size, 1)[rank]
            case "experts" if leaf == "gate_up_proj":
                halves = [half.chunk(size, 1)[rank] for half in value.chunk(2, 1)]
                out[f"{prefix}.routed_experts.w13_weight"] = torch.cat(halves, 1)
            case "experts":
                out[f"{prefix}.routed_experts.w2_weight"] = value.chunk(size, 2)[rank]
            case "embed_tokens" | "lm_head":
                padded = torch.zeros(-(-len(value) // 64) * 64, value.shape[1])
                padded[: len(value)] = value
                out[name] = padded.chunk(size)[rank]
            case _:
                out[name] = value
    return out


def one_by_one(name: str, weights: Weights) -> Weights:
    """The same weights with the names that the hub has for the experts, one by one."""
    block, gate, up, down = ("block_sparse_moe", "w1", "w3", "w2") if name == "mixtral" else HUB_NAMES
    out: Weights = {}
    for key, value in weights.items():
        hub = key.replace(".mlp.", f".{block}.")
        experts, _, leaf = hub.rpartition(".")
        if not experts.endswith(".experts"):
            out[hub] = value
            continue
        for i, expert in enumerate(value):
            parts = dict(zip((gate, up), expert.chunk(2), strict=True)) if leaf == "gate_up_proj" else {down: expert}
            out |= {f"{experts}.{i}.{member}.weight": part for member, part in parts.items()}
    return out


def assert_same_bits(got: Weights, want: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    assert got.keys() == want.keys()
    bits = {torch.float32: torch.int32, torch.bfloat16: torch.int16}[dtype]
    for name, value in want.items():
        assert got[name].dtype == dtype, name
        assert torch.equal(got[name].view(bits), value.to(dtype).contiguous().view(bits)), name


@torch.no_grad()
def trainer_logprobs(
    name: str, weights: Weights, groups: Iterable[tuple[Prompt, Response]], temperature: float, **changes: Any
) -> list[np.ndarray]:
    """What the trainer's policy says of the same tokens."""
    pairs = list(groups)
    policy = Policy(model_with(name, weights, "fastgrpo_padded", **changes), temperature, 64)
    rows = [Sample(prompt, response) for prompt, response in pairs]
    logprobs = policy(pack(rows), entropy=False)
    logprobs = logprobs[0] if isinstance(logprobs, tuple) else logprobs
    return list(np.split(logprobs.float().numpy(), np.cumsum([len(r) for _, r in pairs])[:-1]))


def pairs_of(groups: list[Group]) -> list[tuple[Prompt, Response]]:
    return [(sample.prompt, sample.response) for group in groups for sample in group]


def largest_gap(got: Iterable[np.ndarray], want: Iterable[np.ndarray]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(got, want, strict=True) if len(b))
