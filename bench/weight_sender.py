"""A process that broadcasts a model's weights over gloo when it is told to, as a trainer's rank does."""

from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from bench.vllm_models import new_weights


class SendingProcess:
    """Rank 0 of a sync group of two; the other rank joins at ``port`` with ``manifest``."""

    timeout_s = 300.0

    def __init__(self, folder: Path) -> None:
        context = torch.multiprocessing.get_context("spawn")
        self._connection, child_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(child_end, folder, self.timeout_s), daemon=True)
        self._process.start()
        child_end.close()
        self.port, self.manifest = self._connection.recv()

    def send(self) -> None:
        """Starts a sync and returns at once; the receiver waits for it."""
        self._connection.send(True)

    def close(self) -> None:
        self._connection.close()
        self._process.join(10)
        self._process.kill()


def _serve(connection: Connection, folder: Path, timeout_s: float) -> None:
    from fastgrpo.rollout.weight_sync import Sender, SyncGroup, manifest, open_store

    torch.set_num_threads(1)
    weights: dict[str, Any] = new_weights(folder, torch.device("cpu"))
    tensors = manifest(weights.items(), next(iter(weights.values())).dtype)
    store = open_store("127.0.0.1", 2, timeout_s)
    connection.send((store.port, tensors))
    sender = Sender(SyncGroup.join(store, 0, 2, torch.device("cpu"), timeout_s), tensors)
    try:
        while connection.recv():
            sender.send(weights.items())
    except EOFError:
        return
