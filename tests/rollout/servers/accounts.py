"""What a server of the tests says of itself, and the run that it fits."""

import uuid
from typing import Any

from fastgrpo.rollout.servers.about import About, Needed

NEEDED = Needed(
    model_type="qwen2", vocabulary=300, layers=2, width=64, dtype="float32", sequence_tokens=128,
    per_token_versions=True,
)  # fmt: skip


def about(**other: Any) -> About:
    """A server's account of itself; without other words, one that fits."""
    fits = {
        "vllm": "0.32.0+cpu", "model": "/models/tiny", "model_type": "qwen2", "vocabulary": 300, "layers": 2,
        "width": 64, "dtype": "float32", "quantization": "", "max_model_len": 128, "max_sequences": 64,
        "logprobs_mode": "processed_logprobs", "kv_cache_tokens": 128, "tensor_parallel": 1, "pipeline_parallel": 1,
        "data_parallel": 1, "backend": "fastgrpo", "process": uuid.uuid4().hex,
    }  # fmt: skip
    return About(**{**fits, **other})
