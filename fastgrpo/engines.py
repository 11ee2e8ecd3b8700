"""From a run's settings to a rollout engine in this process."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from fastgrpo.config import Config
from fastgrpo.policy.model import compute_dtype, load_causal_lm
from fastgrpo.rollout.builtin import BuiltinEngine
from fastgrpo.rollout.engine import RolloutEngine
from fastgrpo.rollout.kv_cache import ATTENTION
from fastgrpo.rollout.vllm_engine import VllmEngine, VllmSettings
from fastgrpo.rollout.vllm_window import require_vllm
from fastgrpo.rollout.weight_sync.vllm_cpu_layers import choose_mode

SHARE_BESIDE_TRAINER, SHARE_ALONE = 0.5, 0.9
"""Of a GPU's free memory, what vLLM may take for weights and cache: the trainer's passes need theirs."""


@dataclass(frozen=True)
class EngineSpec:
    """What an engine needs to know, whichever process it is in."""

    config: Config
    device_type: str
    executor: Literal["uni", "external_launcher", "mp"]

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", torch.cuda.current_device()) if self.device_type == "cuda" else torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights as they come to the engine."""
        dtype = engine_dtype(self.config, torch.device(self.device_type))
        return torch.bfloat16 if dtype == torch.float8_e4m3fn else dtype


def engine_dtype(config: Config, device: torch.device) -> torch.dtype:
    """What the engine computes in."""
    if config.rollout.dtype == "auto":
        return compute_dtype(config.model, device)
    return torch.float8_e4m3fn if config.rollout.dtype == "fp8" else getattr(torch, config.rollout.dtype)


def start_engine(spec: EngineSpec) -> RolloutEngine:
    """Raises ValueError for settings that this engine does not have."""
    return start_vllm(spec) if spec.config.rollout.engine == "vllm" else start_builtin(spec)


def start_builtin(spec: EngineSpec) -> BuiltinEngine:
    rollout = spec.config.rollout
    model = load_causal_lm(spec.config.model, spec.device, spec.dtype, ATTENTION)
    return BuiltinEngine(model, rollout.max_sequences, rollout.running)


def start_vllm(spec: EngineSpec) -> VllmEngine:
    config, rollout = spec.config, spec.config.rollout
    on_cpu = spec.device_type == "cpu"
    return VllmEngine(
        VllmSettings(
            path=config.model.path,
            dtype=str(spec.dtype).removeprefix("torch."),
            max_model_len=config.data.max_prompt_tokens + rollout.max_response_tokens,
            max_sequences=rollout.max_sequences,
            tensor_parallel=rollout.tensor_parallel,
            executor=spec.executor,
            kv_cache_gib=rollout.kv_cache_gib,
            gpu_memory_frac=0.0 if on_cpu else _memory_share(spec),
            cpu_layers=choose_mode(config.sync.cpu_layers, num_parameters(config)) if on_cpu else None,
            sleep_level=rollout.sleep_level,
            enforce_eager=rollout.enforce_eager or on_cpu,
            running=rollout.running,
            quantization="fp8" if rollout.dtype == "fp8" else None,
            trust_remote_code=config.model.trust_remote_code,
        )
    )


def check_engine(config: Config, device: torch.device, dtype: torch.dtype) -> None:
    """Refuses what no engine of these settings could do, before anything is loaded. Raises ValueError."""
    rollout = config.rollout
    if rollout.sleep_level and rollout.gpus:
        raise ValueError("--rollout.sleep_level is for engines inside trainer ranks: leave it with --rollout.gpus")
    if rollout.engine == "vllm":
        require_vllm()
        if dtype == torch.float64:
            raise ValueError("vLLM has no float64: take --rollout.engine builtin, or another --model.dtype")
        if device.type == "cpu" and (rollout.dtype == "fp8" or rollout.sleep_level):
            raise ValueError("on a CPU vLLM has neither fp8 nor sleep: leave --rollout.dtype and --rollout.sleep_level")
        return
    unknown = {"tensor_parallel": 1, "kv_cache_gib": 0.0, "sleep_level": 0}
    for name, value in unknown.items():
        if getattr(rollout, name) != value:
            raise ValueError(f"--rollout.{name} is vLLM's: the built-in engine has none, add --rollout.engine vllm")
    if rollout.dtype == "fp8":
        raise ValueError("--rollout.dtype fp8 needs --rollout.engine vllm")


def num_parameters(config: Config) -> int:
    model_config = AutoConfig.from_pretrained(config.model.path, trust_remote_code=config.model.trust_remote_code)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(model_config, trust_remote_code=config.model.trust_remote_code)
    return int(model.num_parameters())


def _memory_share(spec: EngineSpec) -> float:
    free, total = torch.cuda.mem_get_info(spec.device)
    return (SHARE_ALONE if spec.config.rollout.gpus else SHARE_BESIDE_TRAINER) * free / total
