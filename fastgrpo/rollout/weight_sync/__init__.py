"""Writes a trainer's weights into a live engine, in place. Needs only torch, and vLLM if the engine is vLLM.

From another trainer, with an engine in the same process::

    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # vLLM's core in this process too
    llm = vllm.LLM(..., worker_extension_cls="fastgrpo.rollout.weight_sync.vllm_worker.WeightSyncWorker")
    llm.collective_rpc("write_weights", args=(model.named_parameters(),))
    llm.reset_prefix_cache()

With engines in processes of their own, ``group`` is a `SyncGroup` that all of them have joined::

    sender = Sender(group, manifest(model.named_parameters(), torch.bfloat16))
    in every engine: llm.collective_rpc("receive_weights")     # one command for each sync
    here:            sender.send(model.named_parameters())
"""

from fastgrpo.rollout.weight_sync.broadcast import (
    Manifest,
    Receiver,
    Sender,
    SyncGroup,
    find_store,
    manifest,
    open_store,
)
from fastgrpo.rollout.weight_sync.checksum import checksum
from fastgrpo.rollout.weight_sync.live_weights import LayoutError, LiveWeights, Place

__all__ = [
    "LayoutError",
    "LiveWeights",
    "Manifest",
    "Place",
    "Receiver",
    "Sender",
    "SyncGroup",
    "checksum",
    "find_store",
    "manifest",
    "open_store",
]
