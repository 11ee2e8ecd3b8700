"""The command that starts a vLLM server which fits a run."""

import json
import os
import sys
from importlib import metadata

from fastgrpo.config import Config
from fastgrpo.rollout.engine_spec import EngineSpec
from fastgrpo.rollout.vllm.cpu_layers import BACKEND, SETTING, choose_mode
from fastgrpo.rollout.vllm.engine import cores_of_workers
from fastgrpo.rollout.vllm.start import num_parameters
from fastgrpo.rollout.vllm.versions import require_vllm

CPU_CACHE_GIB = 1.0
BIND = "VLLM_CPU_OMP_THREADS_BIND"


def server_command(config: Config, host: str, port: int, on_cpu: bool) -> list[str]:
    """The words of the command. Raises ValueError without a tested version of vLLM, and for fp8.

    The model must be there: on a CPU its size says how its layers are written.
    """
    require_vllm()
    rollout = config.rollout
    if rollout.dtype == "fp8":
        raise ValueError("a server cannot take weights into fp8: leave --rollout.dtype")
    spec = EngineSpec(config, "cpu" if on_cpu else "cuda", "own_process")
    sequence_tokens = config.data.max_prompt_tokens + rollout.max_response_tokens
    words = [
        *_program(), config.model.path, "--host", host, "--port", str(port), "--tokens-only",
        "--dtype", str(spec.dtype).removeprefix("torch."), "--max-model-len", str(sequence_tokens),
        "--max-num-seqs", str(rollout.max_sequences), "--tensor-parallel-size", str(rollout.tensor_parallel),
        "--generation-config", "vllm", "--logprobs-mode", "processed_logprobs",
        "--weight-transfer-config", json.dumps({"backend": BACKEND}), "--disable-uvicorn-access-log",
        "--middleware", "fastgrpo.rollout.vllm.guard.OnlyForRuns",
    ]  # fmt: skip
    cache_gib = rollout.kv_cache_gib or (CPU_CACHE_GIB if on_cpu else 0.0)
    words += ["--kv-cache-memory-bytes", str(int(cache_gib * 2**30))] if cache_gib else []
    words += ["--trust-remote-code"] if config.model.trust_remote_code else []
    words += ["--enforce-eager"] if rollout.enforce_eager or on_cpu else []
    if on_cpu:
        mode = choose_mode(config.sync.vllm_cpu_layers, num_parameters(config))
        words += ["--additional-config", json.dumps({SETTING: mode})]
        # If a prompt is read in parts, vLLM rewinds the request's generator, which a CPU generator cannot do.
        words += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", str(max(sequence_tokens, 8192))]
    return words


def server_environment(key: str, config: Config, on_cpu: bool) -> dict[str, str]:
    """What the command needs in its environment, beside that of this process: the plugins, and the key, which a command
    line would show to everybody."""
    workers, cores = config.rollout.tensor_parallel, {}
    if on_cpu and BIND not in os.environ:  # by itself vLLM binds every server to the same cores
        cores = {BIND: cores_of_workers(workers) if workers > 1 else "nobind"}
    plugins = [p for p in os.environ.get("VLLM_PLUGINS", "").split(",") if p]
    named = {"VLLM_PLUGINS": ",".join(dict.fromkeys([*plugins, "fastgrpo"]))}
    return {**cores, **named, **({"VLLM_API_KEY": key} if key else {})}


def _program() -> list[str]:
    """vLLM's own command; vllm-cpu's asks for the version of a distribution that is not there, its module does not."""
    module = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model"]
    try:
        metadata.version("vllm")
    except metadata.PackageNotFoundError:
        return module
    return [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve"]
