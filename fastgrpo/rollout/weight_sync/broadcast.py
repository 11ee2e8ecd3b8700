"""Weights from one trainer rank to all engine processes: a broadcast for each tensor, directly into its parameter."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fastgrpo.rollout.weight_sync.live_weights import LiveWeights

POLL_S = 0.0005
BACKLOG = 1024  # processes that call before the store answers

Manifest = tuple[tuple[str, tuple[int, ...], torch.dtype], ...]
"""(checkpoint name, shape, dtype on the wire) of every tensor, in the order of a sync."""


def manifest_as_json(manifest: Manifest) -> list[list[Any]]:
    """The manifest for a message; `manifest_of_json` reads it."""
    return [[name, list(shape), str(dtype).removeprefix("torch.")] for name, shape, dtype in manifest]


def manifest_of_json(value: list[list[Any]]) -> Manifest:
    return tuple((name, tuple(shape), getattr(torch, dtype)) for name, shape, dtype in value)


def checksums_key(number: int, rank: int) -> str:
    """Key of the store under which a process leaves its checksums of a sync."""
    return f"checksums/{number}/{rank}"


def manifest(weights: Iterable[tuple[str, Tensor]], dtype: torch.dtype) -> Manifest:
    """The manifest of these tensors, all sent in one dtype."""
    return tuple((name, tuple(value.shape), dtype) for name, value in weights)


@dataclass
class SyncGroup:
    """The sender (rank 0) and the engine processes, in a process group beside those of the trainer and the engine."""

    group: Any  # a backend of torch's, outside its registry of groups
    rank: int
    device: torch.device
    timeout_s: float

    @classmethod
    def join(cls, store: dist.Store, rank: int, size: int, device: torch.device, timeout_s: float) -> "SyncGroup":
        """Meets the others at a store. Raises torch's DistError or TimeoutError if they do not come in time."""
        backend = _backend(store, rank, size, device, timedelta(seconds=timeout_s))
        group = cls(backend, rank, device, timeout_s)
        if device.type == "cuda":  # NCCL connects in its first collective
            group.broadcast(torch.zeros(1, device=device)).wait()
            group.wait_for_device()
        return group

    def broadcast(self, tensor: Tensor) -> dist.Work:
        if self.group is None:
            raise RuntimeError("the group was left")
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = 0, 0
        return self.group.broadcast([tensor], options)

    def wait_for_device(self) -> None:
        """Waits until the GPU has done all that is queued; the wait of a broadcast only orders streams.

        Raises TimeoutError, where a synchronisation might never end.
        """
        if self.device.type != "cuda":
            return
        done = torch.cuda.Event()
        done.record()
        deadline = time.monotonic() + self.timeout_s
        while not done.query():
            if time.monotonic() > deadline:
                raise TimeoutError(f"a broadcast did not end in {self.timeout_s:g} s")
            time.sleep(POLL_S)

    def abort(self) -> None:
        """Ends a group whose peers are gone: waits in progress fail. Returns at once."""
        # Gloo's connections end with the last reference to the group, and until then those who are left wait.
        group, self.group = self.group, None
        if group is not None:
            threading.Thread(target=_end, args=(group,), name="abort of a sync group", daemon=True).start()


def _end(group: Any) -> None:
    abort = getattr(group, "abort", None) or getattr(group, "shutdown", None)
    if abort is not None:
        abort()


def open_store(host: str, size: int, timeout_s: float) -> dist.TCPStore:
    """The store at which the group meets, on a free port (``store.port``) of this host's address alone, where torch
    would listen on all. The sender opens it, and does not wait."""
    family, _, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    listener = socket.create_server(address[:2], family=family, backlog=BACKLOG)
    port, timeout = listener.getsockname()[1], timedelta(seconds=timeout_s)
    return dist.TCPStore(
        host, port, size, is_master=True, timeout=timeout, wait_for_workers=False, master_listen_fd=listener.detach()
    )


def find_store(host: str, port: int, size: int, timeout_s: float) -> dist.TCPStore:
    """The store that the sender opened, for the engine processes."""
    return dist.TCPStore(host, port, size, timeout=timedelta(seconds=timeout_s), wait_for_workers=False)


def address_towards(host: str, port: int) -> str:
    """This host's address on its way to another one. Raises OSError for a name that nobody knows, or without a way."""
    family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:  # connecting it sends nothing
        probe.connect(address)
        return str(probe.getsockname()[0])


@contextlib.contextmanager
def _time_outs_do_not_end_the_process() -> Iterator[None]:
    """By default a group ends its process when a collective times out; a group made in this block does not."""
    name = "TORCH_NCCL_ASYNC_ERROR_HANDLING"
    before = os.environ.get(name)
    os.environ[name] = "0"
    try:
        yield
    finally:
        os.environ.pop(name) if before is None else os.environ.__setitem__(name, before)


def _backend(store: dist.Store, rank: int, size: int, device: torch.device, timeout: timedelta) -> Any:
    if device.type == "cuda":
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = timeout
        with _time_outs_do_not_end_the_process():
            return dist.ProcessGroupNCCL(store, rank, size, options)
    return dist.ProcessGroupGloo(store, rank, size, _gloo_options(store, timeout))


def _gloo_options(store: dist.Store, timeout: timedelta) -> Any:
    """Gloo by itself listens on the address of the host's name, which may be loopback, or on the interface of a launch
    that stays on one machine. Here it takes the address by which this host reaches the others."""
    gloo: Any = dist.ProcessGroupGloo  # torch's stubs do not know all of it
    options = gloo._Options()
    options._timeout = timeout
    host = address_towards(store.host, store.port) if isinstance(store, dist.TCPStore) else "127.0.0.1"
    options._devices = [gloo.create_device(hostname=host)]
    return options


class Sender:
    """The trainer's side."""

    def __init__(self, group: SyncGroup, manifest: Manifest) -> None:
        self.group, self.manifest = group, manifest
        self._next = 0

    @torch.no_grad()
    def send(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Broadcasts a bucket, which holds the next tensors of the manifest. Returns when they have arrived."""
        works = []
        for name, value in weights:
            wanted, shape, dtype = self.manifest[self._next]
            assert (name, tuple(value.shape)) == (wanted, shape), (
                f"needed {wanted} {shape}, got {name} {tuple(value.shape)}"
            )
            self._next = (self._next + 1) % len(self.manifest)
            source = value.to(device=self.group.device, dtype=dtype).contiguous()
            works.append((self.group.broadcast(source), source))  # the source must outlive its broadcast
        for work, _ in works:
            work.wait()
        self.group.wait_for_device()


class Receiver:
    """An engine process's side. Without a layout, ``weights`` is None and ``incoming`` gives whole tensors."""

    def __init__(self, group: SyncGroup, weights: LiveWeights | None, manifest: Manifest) -> None:
        self.group, self.weights, self.manifest = group, weights, manifest
        if weights is not None:
            _require_same(manifest, weights)

    @torch.no_grad()
    def receive(self) -> None:
        """Receives every tensor of the manifest. A tensor that this process holds whole needs no copy."""
        assert self.weights is not None
        for name, shape, dtype in self.manifest:
            place, view = self.weights.writable[name], self.weights.views[name]
            if place.is_whole and view.dtype == dtype:
                self.group.broadcast(view).wait()
            else:
                view.copy_(place.part_of(self._whole(shape, dtype)))
        self.group.wait_for_device()
        self.weights.after_write()

    def incoming(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of the manifest, one at a time, for an engine that loads weights by its own means."""
        for name, shape, dtype in self.manifest:
            yield name, self._whole(shape, dtype)

    def _whole(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        whole = torch.empty(shape, dtype=dtype, device=self.group.device)
        self.group.broadcast(whole).wait()
        return whole


def _require_same(manifest: Manifest, weights: LiveWeights) -> None:
    given = {name for name, *_ in manifest}
    if missing := given ^ weights.names_for(given):
        raise KeyError(f"trainer and engine do not have the same weights: {', '.join(sorted(missing)[:5])}")
    for name, shape, _ in manifest:
        if (held := weights.writable[name].shape) != shape:
            raise KeyError(f"the trainer's {name} has shape {list(shape)}, the engine's {list(held)}")
