"""vLLM as a rollout engine: its engine core runs in this process, and we step it.

Between two steps nothing runs, so weights are written then: without a pause, and without losing a request.
"""

import gc
import logging
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor

from fastgrpo.rollout.compare_weights import added
from fastgrpo.rollout.vllm.cpu_layers import SETTING
from fastgrpo.rollout.vllm.sampling import merged_changes, sampling_of
from fastgrpo.rollout.vllm.versions import require_vllm
from fastgrpo.types import Request, Response

log = logging.getLogger(__name__)

WORKER = "fastgrpo.rollout.vllm.weight_writer.WeightSyncWorker"


@dataclass(frozen=True, kw_only=True)
class VllmSettings:
    """What `VllmEngine` needs of a run's settings."""

    path: str
    dtype: str  # of the weights, as vLLM names it
    max_model_len: int  # prompt and response tokens
    max_sequences: int
    tensor_parallel: int = 1
    executor: Literal["uni", "external_launcher", "mp"] = "uni"
    kv_cache_gib: float = 0.0
    gpu_memory_frac: float = 0.9
    cpu_layers: Literal["live", "repack"] | None = None  # as `cpu_layers.choose_mode`; None on a GPU
    sleep_level: int = 0
    enforce_eager: bool = False
    kv_on_sync: Literal["recompute", "keep"] = "recompute"
    quantization: str | None = None
    trust_remote_code: bool = False


class VllmEngine:
    """A rollout engine (`rollout/engine_protocol.py`) around vLLM; weights are written between two steps.

    Logprobs are vLLM's processed ones: log-softmax of logits / temperature over the whole vocabulary, because there is
    no top-k and no penalty. With top-p, which training never sets, they would be those of the nucleus: then vLLM is not
    asked for them, and they are NaN. Raises ValueError for a vLLM outside the tested versions.
    """

    def __init__(self, settings: VllmSettings) -> None:
        require_vllm()
        self.settings = settings
        self.engine = _start(settings)
        self.policy_version = 0
        self._drawing: dict[int, _Drawing] = {}
        self._asleep: set[str] = set()
        reasons = self._rpc("sync_layout")
        self.not_in_place = next((r for r in reasons if r), "")
        """Why weights are written by vLLM's reload and not in place; empty if they are written in place."""
        if self.not_in_place:
            log.warning("weights go through vLLM's own reload, not into place: %s", self.not_in_place)
        self._num_writes = 0

    def submit(self, requests: Sequence[Request]) -> None:
        self._wake("weights", "kv_cache")
        for request in requests:
            prompt = {
                "type": "token",
                "prompt_token_ids": request.prompt.prompt_ids.tolist(),
                "cache_salt": str(self._num_writes),  # prefixes read under other weights are not reused
            }
            self._drawing[request.id] = _Drawing(request, self.policy_version)
            self.engine.add_request(str(request.id), prompt, _sampling_params(request))

    def step(self) -> list[tuple[int, Response]]:
        finished = []
        for output in self.engine.step():
            drawing, completion = self._drawing[int(output.request_id)], output.outputs[0]
            drawing.add(completion)
            if output.finished:
                del self._drawing[int(output.request_id)]
                finished.append((int(output.request_id), drawing.response(completion.finish_reason)))
        return finished

    def cancel(self, ids: Iterable[int]) -> None:
        running = [i for i in ids if self._drawing.pop(i, None) is not None]
        if running:
            self.engine.abort_request([str(i) for i in running])

    def is_unfinished(self) -> bool:
        return bool(self._drawing)

    def write_weights(self, weights: Iterable[tuple[str, Tensor]], policy_version: int) -> None:
        self._wake("weights")  # the cache is not needed yet
        self._rpc("write_weights", weights)
        self.weights_changed(policy_version)

    def weights_changed(self, policy_version: int) -> None:
        self.policy_version = policy_version
        self._num_writes += 1
        for drawing in self._drawing.values():
            drawing.changes.append((len(drawing.ids), policy_version))
        if self._drawing and self.settings.kv_on_sync == "recompute":
            self.engine.reset_prefix_cache(reset_running_requests=True)
        elif waiting := [d.request for d in self._drawing.values() if not d.ids]:
            self.cancel([r.id for r in waiting])  # with their salt, vLLM could reuse prompts read under older weights
            self.submit(waiting)

    def checksums(self) -> dict[str, int]:
        return added(self._rpc("sync_checksums"))

    def release_memory(self) -> None:
        if self.settings.sleep_level and not self._asleep:
            self.engine.sleep(self.settings.sleep_level)
            self._asleep = {"weights", "kv_cache"}

    def _wake(self, *what: str) -> None:
        for part in what:
            if part in self._asleep:
                self.engine.wake_up([part])
                self._asleep.discard(part)

    def close(self) -> None:
        """Frees weights and cache. vLLM's own shutdown is not called: it would destroy the trainer's process groups."""
        from vllm.distributed.parallel_state import destroy_model_parallel

        client = self.engine.engine_core
        if (finalizer := getattr(client, "_finalizer", None)) is not None:
            finalizer.detach()
        client.engine_core.model_executor.shutdown()
        client.engine_core.scheduler.shutdown()
        destroy_model_parallel()
        gc.unfreeze()

    def _rpc(self, method: str, *arguments: Any) -> list[Any]:
        return self.engine.collective_rpc(method, args=arguments)


class _Drawing:
    """A response that is being drawn."""

    def __init__(self, request: Request, policy_version: int) -> None:
        self.request, self.policy_version = request, policy_version
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.changes: list[tuple[int, int]] = []

    def add(self, completion: Any) -> None:
        self.ids.extend(completion.token_ids)
        count = len(completion.token_ids)
        if self.request.sampling.top_p < 1:
            self.logprobs.extend([math.nan] * count)
        else:
            self.logprobs.extend(_sampled_logprobs(count, completion.logprobs))

    def response(self, finish_reason: str) -> Response:
        assert finish_reason in ("stop", "length"), f"vLLM ended a request with {finish_reason!r}"
        first, later = merged_changes([(0, self.policy_version), *self.changes], len(self.ids))
        return Response(
            response_ids=np.array(self.ids, dtype=np.int32),
            rollout_logprobs=np.array(self.logprobs, dtype=np.float32),
            finish_reason="stop" if finish_reason == "stop" else "length",
            policy_version=first,
            version_changes=later,
        )


def _sampled_logprobs(num_tokens: int, flat: Any) -> list[float]:
    """The logprobs of the sampled tokens, which vLLM lists first at every position.

    Before 0.28 an output without a new token has the logprobs of all earlier tokens, so only ``num_tokens`` are read.
    """
    return [flat.logprobs[start] for start in flat.start_indices[:num_tokens]]


def _sampling_params(request: Request) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(**sampling_of(request), flat_logprobs=True, output_kind=RequestOutputKind.DELTA)


def _start(settings: VllmSettings) -> Any:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the core in this process; vLLM has no other setting for it
    if settings.kv_cache_gib:
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, round(settings.kv_cache_gib)))
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    if settings.cpu_layers is not None and settings.executor == "mp":
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", cores_of_workers(settings.tensor_parallel))
    from vllm import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    options: dict[str, Any] = {
        "model": settings.path,
        "dtype": settings.dtype,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_sequences,
        "tensor_parallel_size": settings.tensor_parallel,
        "distributed_executor_backend": settings.executor,
        "enforce_eager": settings.enforce_eager,
        "enable_prefix_caching": True,
        "logprobs_mode": "processed_logprobs",
        "worker_extension_cls": WORKER,
        "enable_sleep_mode": settings.sleep_level > 0,
        "quantization": settings.quantization,
        "trust_remote_code": settings.trust_remote_code,
        "skip_tokenizer_init": True,
        "generation_config": "vllm",  # not the model's own sampling settings
        "async_scheduling": False,  # a token must be known before the weights change
        "disable_log_stats": True,
        "seed": 0,
    }
    if settings.cpu_layers is not None:
        options["additional_config"] = {SETTING: settings.cpu_layers}
        # If a prompt is read in parts, vLLM rewinds the request's generator, which a CPU generator cannot do.
        options["enable_chunked_prefill"] = False
        options["max_num_batched_tokens"] = max(settings.max_model_len, 8192)
    else:
        options["gpu_memory_utilization"] = settings.gpu_memory_frac
        if settings.kv_cache_gib:
            options["kv_cache_memory_bytes"] = int(settings.kv_cache_gib * 2**30)
    return LLMEngine.from_engine_args(EngineArgs(**options))


def cores_of_workers(count: int) -> str:
    """This process's cores divided among its workers, in vLLM's notation.

    Without it vLLM binds the workers itself, and refuses two on one NUMA node.
    """
    cores = sorted(os.sched_getaffinity(0))
    shares = [cores[i::count] or cores[:1] for i in range(count)]
    return "|".join(",".join(map(str, share)) for share in shares)
