"""Engines that take weights from another process."""

from typing import Protocol

from fastgrpo.rollout.engine import RolloutEngine
from fastgrpo.rollout.weight_sync import Manifest


class ReceivingEngine(RolloutEngine, Protocol):
    @property
    def num_workers(self) -> int:
        """Processes that hold its weights; they take consecutive ranks of a sync group."""
        ...

    def join_sync(self, host: str, port: int, first_rank: int, size: int, timeout_s: float, wire: Manifest) -> None:
        """Meets the sender and the other engines."""
        ...

    def receive_weights(self, policy_version: int) -> None:
        """Takes the weights that are being sent, straight into the live ones."""
        ...
