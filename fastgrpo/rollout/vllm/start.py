"""Starts vLLM with a run's settings."""

from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from fastgrpo.config import Config
from fastgrpo.rollout.engine_spec import EngineSpec
from fastgrpo.rollout.vllm.cpu_layers import choose_mode
from fastgrpo.rollout.vllm.engine import VllmEngine, VllmSettings
from fastgrpo.rollout.vllm.versions import require_vllm

SHARE_BESIDE_TRAINER, SHARE_ALONE = 0.5, 0.9
"""Share of a GPU's free memory that vLLM may take for weights and cache, with a trainer on the same GPU or without."""


def check_vllm(config: Config, device: torch.device, dtype: torch.dtype) -> None:
    """Raises ValueError without a tested version of vLLM, or for settings that vLLM does not have on this device."""
    require_vllm()
    if dtype == torch.float64:
        raise ValueError("vLLM has no float64: take --rollout.engine builtin, or another --model.dtype")
    if device.type == "cpu" and (config.rollout.dtype == "fp8" or config.rollout.sleep_level):
        raise ValueError("on a CPU vLLM has neither fp8 nor sleep: leave --rollout.dtype and --rollout.sleep_level")


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
            executor=_executor(spec),
            kv_cache_gib=rollout.kv_cache_gib,
            gpu_memory_frac=0.0 if on_cpu else _memory_share(spec),
            cpu_layers=choose_mode(config.sync.vllm_cpu_layers, num_parameters(config)) if on_cpu else None,
            sleep_level=rollout.sleep_level,
            enforce_eager=rollout.enforce_eager or on_cpu,
            kv_on_sync=rollout.kv_on_sync,
            quantization="fp8" if rollout.dtype == "fp8" else None,
            trust_remote_code=config.model.trust_remote_code,
        )
    )


def _executor(spec: EngineSpec) -> Literal["uni", "external_launcher", "mp"]:
    """vLLM's name for where its workers run: in this process, in the launch's ranks, or in processes of its own."""
    if spec.placement == "in_rank":
        return "external_launcher"
    return "mp" if spec.config.rollout.tensor_parallel > 1 else "uni"


def _memory_share(spec: EngineSpec) -> float:
    free, total = torch.cuda.mem_get_info(spec.device)
    return (SHARE_ALONE if spec.config.rollout.gpus else SHARE_BESIDE_TRAINER) * free / total


def num_parameters(config: Config) -> int:
    """The size of the run's model."""
    model_config = AutoConfig.from_pretrained(config.model.path, trust_remote_code=config.model.trust_remote_code)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(model_config, trust_remote_code=config.model.trust_remote_code)
    return int(model.num_parameters())
