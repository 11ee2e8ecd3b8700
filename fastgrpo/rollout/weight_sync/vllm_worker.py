"""The name under which other trainers give vLLM its worker extension."""

from fastgrpo.rollout.vllm.weight_writer import WeightSyncWorker

__all__ = ["WeightSyncWorker"]
