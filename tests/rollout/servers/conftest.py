import threading

import pytest

from fastgrpo.config import DeadlineConfig
from fastgrpo.rollout.servers import pool as module
from fastgrpo.rollout.servers.pool import ServerPool
from tests.rollout.servers.until import LONG_S, until


@pytest.fixture(scope="module")
def syncs_end():
    """Waits at the end for syncs that were given up: their threads meet nobody, until the time for it is over. One that
    comes back to an interpreter which is ending would abort it."""
    yield
    until(lambda: not any(thread.name == "weight sync" for thread in threading.enumerate()))


@pytest.fixture
def pool_of(monkeypatch):
    """Makes pools of so many servers, which are looked for and not there yet."""
    monkeypatch.setattr(module, "WATCH_S", 0.02)
    pools = []

    def make(num_servers: int = 2, *, max_losses: int | None = 3, max_sequences: int = 64, **deadlines: float):
        limits = DeadlineConfig(**{"stall_s": LONG_S, "start_s": LONG_S, **deadlines})
        pools.append(ServerPool(limits, max_sequences, max_losses))
        for i in range(num_servers):
            pools[-1].add(f"http://server{i}")
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()
