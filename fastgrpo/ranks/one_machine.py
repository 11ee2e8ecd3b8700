"""A launch on one machine, of which nothing can be reached from another."""

import os
import socket
from collections.abc import MutableMapping

LOOPBACK = "127.0.0.1"
LOOPBACK_INTERFACE = "lo"


def is_on_one_machine() -> bool:
    """Whether all ranks of this launch are on one node, as the launcher tells. Of one that does not say how many are
    on each, as srun does not, only a lone rank is sure: the first of several nodes may call itself localhost."""
    count = os.environ.get("WORLD_SIZE", "1")
    return os.environ.get("LOCAL_WORLD_SIZE", "1") == count


def reach_other_machines(environment: MutableMapping[str, str]) -> None:
    """Lets NCCL listen where it would by itself, although all ranks are on one machine: servers elsewhere join it."""
    environment.setdefault("NCCL_SOCKET_IFNAME", "^docker,lo")


def stay_on_this_machine(environment: MutableMapping[str, str]) -> None:
    """Makes gloo, NCCL and vLLM listen on loopback alone, which they would do on the interface of the host's name.
    What the user has set stays."""
    if any(name == LOOPBACK_INTERFACE for _, name in socket.if_nameindex()):
        environment.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK_INTERFACE)
        environment.setdefault("NCCL_SOCKET_IFNAME", LOOPBACK_INTERFACE)
    environment.setdefault("VLLM_HOST_IP", LOOPBACK)


def unreachable_name() -> str:
    """Why ranks on other nodes would not reach this one; empty if they may. Gloo listens on the address of the host's
    name, which Debian writes into /etc/hosts as 127.0.1.1; the others would wait for it until their deadline."""
    if is_on_one_machine() or os.environ.get("GLOO_SOCKET_IFNAME"):
        return ""
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError:
        return ""
    if not address.startswith("127."):
        return ""
    return (
        f"this host's name, {name}, means {address} to itself: gloo listens there, and other nodes do not reach it. "
        f"Set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the interface that the nodes share (docs/scale.md)"
    )
