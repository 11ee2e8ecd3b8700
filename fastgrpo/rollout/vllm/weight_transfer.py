"""The in-place writer as vLLM's weight transfer engine: weights go from the trainer straight into live parameters."""

import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from fastgrpo.rollout.vllm.weight_writer import live_weights
from fastgrpo.rollout.weight_sync import Receiver, SyncGroup, find_store
from fastgrpo.rollout.weight_sync.broadcast import checksums_key, manifest_of_json


@dataclass
class Meeting(WeightTransferInitInfo):
    """Where the sender waits, and the ranks that this server's processes take there, from ``first_rank`` on."""

    host: str
    port: int
    first_rank: int
    size: int
    timeout_s: float
    manifest: list[list[Any]]


@dataclass
class Sync(WeightTransferUpdateInfo):
    """One sync. With checksums every process leaves its own at the store where it met the sender."""

    number: int
    with_checksums: bool


class InPlaceTransfer(WeightTransferEngine[Meeting, Sync]):
    """Receives every tensor of a sync into its place. No second copy of the model, and addresses never change.

    Raises LayoutError, which ends the start of the server, for a model whose layout is not known.
    """

    init_info_cls, update_info_cls = Meeting, Sync
    supports_draft_weight_update = False

    def __init__(self, config: Any, vllm_config: Any, device: torch.device, model: nn.Module) -> None:
        super().__init__(config, vllm_config, device, model)
        self.weights = live_weights(model)
        self.receiver: Receiver | None = None
        self.store: Any = None

    def init_transfer_engine(self, init_info: Meeting) -> None:
        """Meets the sender; may be called again, for another group."""
        self.shutdown()
        rank = init_info.first_rank + get_tensor_model_parallel_rank()
        self.store = find_store(init_info.host, init_info.port, init_info.size, init_info.timeout_s)
        group = SyncGroup.join(self.store, rank, init_info.size, self.device, init_info.timeout_s)
        self.receiver = Receiver(group, self.weights, manifest_of_json(init_info.manifest))

    def start_weight_update(self) -> None:
        """Nothing to prepare."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """As the base class, whose wait for the device asks torch for one, which a CPU is not."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: Sync) -> None:
        if self.receiver is None:
            raise RuntimeError("no sender of weights was named")
        self.receiver.receive()
        if update_info.with_checksums:
            key = checksums_key(update_info.number, self.receiver.group.rank)
            self.store.set(key, json.dumps(self.weights.checksums()))

    def finish_weight_update(self) -> None:
        """Nothing is left to do."""

    def shutdown(self) -> None:
        """Leaves the group."""
        if self.receiver is not None:
            self.receiver.group.abort()
        self.receiver, self.store = None, None

    @staticmethod
    def trainer_send_weights(iterator: Any, trainer_args: Any) -> None:
        """Abstract in vLLM 0.26 and 0.27. The trainer sends by `fastgrpo.rollout.weight_sync.Sender`."""
        raise NotImplementedError("the trainer sends by fastgrpo.rollout.weight_sync.Sender")
