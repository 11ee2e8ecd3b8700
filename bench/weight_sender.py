"""A process that broadcasts a model's weights over gloo whenever it is told to, as a trainer's rank does."""

from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from bench.vllm_models import new_weights


class SendingProcess:
    """Rank 0 of a sync group of two; the other is whoever joins at ``port`` with ``manifest``."""

    timeout_s = 300.0

    def __init__(self, folder: Path) -> None:
        context = torch.multiprocessing.get_context("spawn")
        self._line, its_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(its_end, folder, self.timeout_s), daemon=True)
        self._process.start()
        its_end.close()
        self.port, self.manifest = self._line.recv()

    def send(self) -> None:
        """One sync; returns at once, the receiver waits for it."""
        self._line.send(True)

    def close(self) -> None:
        self._line.close()
        self._process.join(10)
        self._process.kill()


def _serve(line: Connection, folder: Path, timeout_s: float) -> None:
    from fastgrpo.rollout.weight_sync import Sender, SyncGroup, manifest, open_store

    torch.set_num_threads(1)
    weights: dict[str, Any] = new_weights(folder, torch.device("cpu"))
    wire = manifest(weights.items(), next(iter(weights.values())).dtype)
    store = open_store("127.0.0.1", 2, timeout_s)
    line.send((store.port, wire))
    sender = Sender(SyncGroup.join(store, 0, 2, torch.device("cpu"), timeout_s), wire)
    try:
        while line.recv():
            sender.send(weights.items())
    except EOFError:
        return
