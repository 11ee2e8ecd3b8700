"""A server's worker without a server: it meets the sender of weights, and receives into parameters of its own."""

import json
from typing import Any

import torch
from torch import Tensor, nn

from fastgrpo.rollout.weight_sync import LiveWeights, Place, Receiver, SyncGroup, find_store
from fastgrpo.rollout.weight_sync.broadcast import checksums_key, manifest_of_json


class Replica:
    """As `fastgrpo.rollout.vllm.weight_transfer` does with a meeting and a sync."""

    def __init__(self, weights: LiveWeights) -> None:
        self.weights = weights
        self.num_joins = 0
        self._receiver: Receiver | None = None
        self._store: Any = None

    def join(self, meeting: dict[str, Any], place: int = 0) -> None:
        """Takes the rank of the ``place``-th worker of its server."""
        self.num_joins += 1
        size, timeout_s = meeting["size"], meeting["timeout_s"]
        self._store = find_store(meeting["host"], meeting["port"], size, timeout_s)
        group = SyncGroup.join(self._store, meeting["first_rank"] + place, size, torch.device("cpu"), timeout_s)
        self._receiver = Receiver(group, self.weights, manifest_of_json(meeting["manifest"]))

    def receive(self, number: int, with_checksums: bool) -> None:
        assert self._receiver is not None
        self._receiver.receive()
        if with_checksums:
            key = checksums_key(number, self._receiver.group.rank)
            self._store.set(key, json.dumps(self.weights.checksums()))

    def values(self) -> dict[str, Tensor]:
        return {name: view.clone() for name, view in self.weights.views.items()}


def replica_of(model: nn.Module) -> Replica:
    return Replica(LiveWeights.of_modules(model))


def half_of(model: nn.Module, index: int) -> Replica:
    """One of two workers: it holds half of the rows of every matrix, and all of every vector, which one counts."""
    parameters, places = {}, {}
    for name, parameter in model.named_parameters():
        shape = tuple(parameter.shape)
        if parameter.dim() == 1:
            parameters[name] = torch.zeros(shape)
            places[name] = Place(name, 0, (0, shape[0]), None, shape, is_first=index == 0)
        else:
            rows = (index * shape[0] // 2, (index + 1) * shape[0] // 2)
            parameters[name] = torch.zeros(rows[1] - rows[0], shape[1])
            places[name] = Place(name, 0, rows, (0, shape[1]), shape)
    return Replica(LiveWeights(parameters, places))
