"""Where the processes of a launch meet: torch's store, listening on no more interfaces than it must."""

import os
import socket
from datetime import timedelta

import torch.distributed as dist

from fastgrpo.ranks.one_machine import is_on_one_machine, stay_on_this_machine

LISTENER = "FASTGRPO_LISTENER"
"""The environment variable by which the launcher tells the first rank the socket that the store listens on."""


BACKLOG = 1024
"""Ranks that call before the first one answers."""


def launched_ranks() -> tuple[int, int]:
    """(rank, number of ranks) as torchrun tells them; (0, 1) without a launcher.

    Raises ValueError for what no launcher writes.
    """
    told = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not all(t.isdecimal() for t in told) or int(told[0]) >= int(told[1]):
        raise ValueError(f"the environment says RANK={told[0]} of WORLD_SIZE={told[1]} ranks: unset both, or mend them")
    return int(told[0]), int(told[1])


def meet(timeout: timedelta) -> dist.Store:
    """The store of all processes of the launch. Raises ValueError if they cannot meet.

    On one machine it listens on the address that all know it by, where torch's own listens on all interfaces; and so do
    the connections that torch makes later.
    """
    if is_on_one_machine():
        stay_on_this_machine(os.environ)
    if "MASTER_PORT" not in os.environ:
        return dist.HashStore()
    rank, count = launched_ranks()
    host, port = os.environ.get("MASTER_ADDR", ""), os.environ["MASTER_PORT"]
    try:
        if rank == 0 and is_on_one_machine() and not _is_torchruns():
            listener = _listener(host, int(port))
            store: dist.Store = dist.TCPStore(
                host, int(port), count, is_master=True, timeout=timeout, master_listen_fd=listener.detach()
            )
        else:
            store, _, _ = next(dist.rendezvous("env://", rank=rank, world_size=count, timeout=timeout))
    except (dist.DistNetworkError, dist.DistStoreError, OSError) as error:
        raise ValueError(
            f"rank {rank} cannot meet the others at {host}:{port} ({str(error).splitlines()[0]}): is the port in use? "
            f"Take another, torchrun --master_port N, or let `fastgrpo train` choose"
        ) from error
    store.set_timeout(timeout)
    return store


def _is_torchruns() -> bool:
    """Whether the store is in torchrun's own process."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)


def _listener(host: str, port: int) -> socket.socket:
    """The launcher's socket, or one that is bound here."""
    given = os.environ.pop(LISTENER, None)
    if given is not None:
        return socket.socket(fileno=int(given))
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    return socket.create_server(address[:2], family=family, backlog=BACKLOG)
