"""From a run's settings to the built-in engine."""

import torch
from transformers import PreTrainedModel

from fastgrpo.config import Config
from fastgrpo.models.decoder import decoder_of
from fastgrpo.models.load import load_causal_lm, set_attention
from fastgrpo.rollout.builtin.engine import BuiltinEngine
from fastgrpo.rollout.builtin.kv_cache import ATTENTION
from fastgrpo.rollout.engine_spec import EngineSpec

WITHOUT = {"tensor_parallel": 1, "kv_cache_gib": 0.0, "sleep_level": 0}
"""Settings that this engine does not have, each with the value that asks for nothing."""


def check_builtin(config: Config, device: torch.device, dtype: torch.dtype) -> None:
    """Raises ValueError for settings that only vLLM has."""
    for name, value in WITHOUT.items():
        if getattr(config.rollout, name) != value:
            raise ValueError(f"--rollout.{name} is vLLM's: the built-in engine has none, add --rollout.engine vllm")
    if config.rollout.dtype == "fp8":
        raise ValueError("--rollout.dtype fp8 needs --rollout.engine vllm")


def builtin_of(model: PreTrainedModel) -> BuiltinEngine:
    """An engine that samples from this very model, whose attention becomes the engine's."""
    return BuiltinEngine(_with_its_attention(model), max_sequences=64)


def start_builtin(spec: EngineSpec) -> BuiltinEngine:
    rollout = spec.config.rollout
    model = load_causal_lm(spec.config.model, spec.device, spec.dtype, ATTENTION)
    return BuiltinEngine(_with_its_attention(model), rollout.max_sequences, rollout.kv_on_sync)


def _with_its_attention(model: PreTrainedModel) -> PreTrainedModel:
    set_attention(model, ATTENTION)
    if decoder_of(model).config._attn_implementation != ATTENTION:
        raise ValueError(f"the attention of a {type(model).__name__} takes no cache but its own: --rollout.engine vllm")
    return model
