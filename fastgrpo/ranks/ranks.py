"""The processes of a launch, and what they tell each other besides tensors of the model."""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from fastgrpo.codec import decode, encode
from fastgrpo.command_line.system_errors import in_words
from fastgrpo.config import ParallelConfig
from fastgrpo.ranks.rendezvous import launched_ranks, meet
from fastgrpo.ranks.watchdog import Watchdog

T = TypeVar("T")


@dataclass(frozen=True)
class Role:
    """What a process of the launch does: the last ``gpus`` of every node sample, the others train."""

    is_trainer: bool
    index: int  # among those of its kind
    num_trainers: int
    num_samplers: int

    @classmethod
    def of_this_rank(cls, gpus: int) -> "Role":
        rank, count = launched_ranks()
        local_rank, per_node = int(os.environ.get("LOCAL_RANK", rank)), int(os.environ.get("LOCAL_WORLD_SIZE", count))
        return cls.of(rank, count, local_rank, per_node, gpus)

    @classmethod
    def of(cls, rank: int, count: int, local_rank: int, per_node: int, gpus: int) -> "Role":
        """The role of a rank of the launch. Raises ValueError if nobody is left to train."""
        if gpus >= per_node:
            raise ValueError(
                f"--rollout.gpus {gpus} leaves none of the {per_node} ranks of a node to train: start more ranks "
                f"(--ranks, or --nproc_per_node), or give the engines fewer"
            )
        node, training = rank // per_node, per_node - gpus
        nodes = count // per_node
        if local_rank < training:
            return cls(True, node * training + local_rank, nodes * training, nodes * gpus)
        return cls(False, node * gpus + local_rank - training, nodes * training, nodes * gpus)


def choose_device(setting: str) -> torch.device:
    """This rank's device. Raises ValueError if a GPU is asked for and none is visible."""
    if setting == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda needs a visible CUDA GPU, and this torch sees none: use --device cpu")
    if setting == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    return device


def share_of(items: Sequence[T], part: int, num_parts: int) -> Sequence[T]:
    """One of the contiguous parts of nearly equal length that items are split into."""
    return items[len(items) * part // num_parts : len(items) * (part + 1) // num_parts]


class Refused(ValueError):
    """What the user asked for cannot run; every rank raises it, with the reason of the first that found one."""


def is_of_a_lost_rank(error: BaseException) -> bool:
    """Whether a collective failed because another rank has ended: the launcher says which."""
    return isinstance(error, dist.DistNetworkError) or "gloo/transport" in str(error)


@dataclass(frozen=True)
class Ranks:
    """This rank among those that train. Objects travel over gloo, beside the group that tensors use."""

    rank: int
    count: int
    device: torch.device
    mesh: DeviceMesh  # ("replica", "shard")
    control: dist.ProcessGroup
    timeout: timedelta
    store: dist.Store  # of all processes of the launch, also of those that only sample
    watchdog: Watchdog

    @classmethod
    def connect(cls, device: torch.device, config: ParallelConfig, role: Role | None = None) -> "Ranks":
        """Joins the ranks that train. A lone process is a group of one, so that there is one code path.

        Raises ValueError if the ranks cannot meet.
        """
        role = role or Role.of_this_rank(0)
        timeout = timedelta(seconds=config.timeout_s)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        store = meet(timeout)
        rank, count = role.index, role.num_trainers
        try:
            dist.init_process_group(
                backend,
                store=dist.PrefixStore("trainers", store),
                rank=rank,
                world_size=count,
                timeout=timeout,
                device_id=device if device.type == "cuda" else None,  # NCCL connects now, not in the first step
            )
        except RuntimeError as error:
            if "Unable to find address" not in str(error):
                raise
            raise ValueError(
                f"gloo finds no address to listen on ({str(error).splitlines()[0]}): is GLOO_SOCKET_IFNAME, now "
                f"{os.environ.get('GLOO_SOCKET_IFNAME')}, an interface of this machine?"
            ) from error
        shape = (config.replicas, count // config.replicas)
        mesh = init_device_mesh(device.type, shape, mesh_dim_names=("replica", "shard"))
        control = dist.new_group(backend="gloo", timeout=timeout)
        watchdog = Watchdog(store, rank, count)
        return cls(rank, count, device, mesh, control, timeout, store, watchdog)

    def disconnect(self) -> None:
        self.watchdog.close()
        dist.destroy_process_group()

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def device_name(self) -> str:
        """The model of this rank's GPU, or CPU."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"

    def share_of(self, items: Sequence[T]) -> Sequence[T]:
        """This rank's contiguous part; the parts of all ranks differ in length by at most one."""
        return share_of(items, self.rank, self.count)

    def gather(self, items: Sequence[T], types: Iterable[type] = ()) -> list[T]:
        """The items of all ranks, in rank order, on every rank.

        Items are what `fastgrpo.codec` knows, dataclasses of ``types`` among them: nothing that comes is executed.
        """
        types = list(types)
        return [item for part in self._gather_bytes(encode(list(items))) for item in decode(part, types)]

    def _gather_bytes(self, mine: bytes) -> list[bytes]:
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.count)]
        dist.all_gather(sizes, torch.tensor([len(mine)]), group=self.control)
        longest = max(int(size) for size in sizes)
        padded = torch.frombuffer(bytearray(mine.ljust(longest, b"\0")), dtype=torch.uint8)
        parts = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.count)]
        dist.all_gather(parts, padded, group=self.control)
        return [part[: int(size)].numpy().tobytes() for part, size in zip(parts, sizes, strict=True)]

    def to_first(self, items: Sequence[T], types: Iterable[type] = ()) -> list[T]:
        """The items of all ranks, in rank order, on the first rank; none on the others. Items are as `gather` has
        them."""
        mine = encode(list(items))
        sizes = self.gather([len(mine)])
        words = np.frombuffer(mine.ljust(-(-len(mine) // 4) * 4, b"\0"), dtype=np.int32)
        nothing = np.zeros(0, dtype=np.int32)
        outgoing = [words, *[nothing] * (self.count - 1)]
        parts = self.exchange(outgoing, [-(-size // 4) if self.is_first else 0 for size in sizes])
        types = list(types)
        found = [decode(p.tobytes()[:size], types) for p, size in zip(parts, sizes, strict=True) if self.is_first]
        return [item for part in found for item in part]

    def from_first(self, value: T, types: Iterable[type] = ()) -> T:
        """The first rank's value, as `gather` has items, on every rank."""
        content = np.frombuffer(encode(value) if self.is_first else b"", dtype=np.uint8)
        size = torch.tensor([len(content)])
        dist.broadcast(size, src=0, group=self.control)
        buffer = torch.from_numpy(content.copy()) if self.is_first else torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(buffer, src=0, group=self.control)
        return value if self.is_first else cast(T, decode(buffer.numpy().tobytes(), types))

    def exchange(self, outgoing: Sequence[np.ndarray], counts: Sequence[int]) -> list[np.ndarray]:
        """What every rank has for this one.

        ``outgoing[k]``, int32, goes to rank k, and from it come ``counts[k]`` values, as both must know beforehand.
        """
        sent = torch.from_numpy(np.concatenate(outgoing))
        received = torch.empty(sum(counts), dtype=torch.int32)
        sizes = [len(part) for part in outgoing]
        dist.all_to_all_single(received, sent, list(counts), sizes, group=self.control)
        return np.split(received.numpy(), np.cumsum(counts)[:-1])

    def any(self, flag: bool) -> bool:
        """Whether any rank says so."""
        votes = torch.tensor(int(flag))
        dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self.control)
        return bool(votes)

    def together(self, work: Callable[[], T]) -> T:
        """The result of work that a rank may refuse with a ValueError, or that its system does. If one does, all raise
        Refused with its reason: alone it would leave the others waiting."""
        result, reasons = None, []
        try:
            result = work()
        except ValueError as error:
            reasons = [str(error)]
        except OSError as error:
            reasons = [in_words(error)]
        if reasons := self.gather(reasons):
            raise Refused(reasons[0])
        return cast(T, result)

    def all_come(self, where: str, within_s: float = 20.0) -> bool:
        """Whether every rank comes here once, so soon after each other. One that comes alone has left the others in a
        collective, which only its end can end."""
        key = f"came/{where}"
        self.store.add(key, 1)
        until = time.monotonic() + within_s
        while (came := self.store.add(key, 0)) < self.count and time.monotonic() < until:
            time.sleep(0.05)
        return came >= self.count

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The elementwise sum over ranks, on the CPU."""
        values = values.cpu()
        dist.all_reduce(values, group=self.control)
        return values

    def barrier(self) -> None:
        dist.barrier(group=self.control)
