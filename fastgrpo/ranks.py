"""The processes of a launch, and what they tell each other besides tensors of the model."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from fastgrpo.config import ParallelConfig

T = TypeVar("T")


def launched_ranks() -> tuple[int, int]:
    """(rank, number of ranks) as torchrun tells them; (0, 1) without a launcher."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def choose_device(setting: str) -> torch.device:
    """This rank's device. Raises ValueError if a GPU is asked for and none is visible."""
    if setting == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda needs a visible CUDA GPU, and this torch sees none: use --device cpu")
    if setting == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    return device


class Refused(ValueError):
    """What the user asked for cannot run; every rank raises it, with the reason of the first that found one."""


@dataclass(frozen=True)
class Ranks:
    """This rank among all. Objects travel over gloo, beside the group that tensors use."""

    rank: int
    count: int
    device: torch.device
    mesh: DeviceMesh  # ("replica", "shard")
    control: dist.ProcessGroup
    timeout: timedelta

    @classmethod
    def connect(cls, device: torch.device, config: ParallelConfig) -> "Ranks":
        """Joins the launch. A lone process is a group of one, so that there is one code path.

        Raises ValueError if the ranks cannot meet.
        """
        rank, count = launched_ranks()
        store = dist.HashStore() if "MASTER_PORT" not in os.environ else None
        timeout = timedelta(seconds=config.timeout_s)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        try:
            dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=timeout)
        except dist.DistNetworkError as error:
            raise ValueError(
                f"rank {rank} cannot meet the others at {os.environ.get('MASTER_ADDR')}:"
                f"{os.environ.get('MASTER_PORT')} ({str(error).splitlines()[0]}): is the port in use? Take another, "
                f"torchrun --master_port N, or let `fastgrpo train` choose"
            ) from error
        shape = (config.replicas, count // config.replicas)
        mesh = init_device_mesh(device.type, shape, mesh_dim_names=("replica", "shard"))
        return cls(rank, count, device, mesh, dist.new_group(backend="gloo", timeout=timeout), timeout)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share_of(self, items: Sequence[T]) -> Sequence[T]:
        """This rank's contiguous part; the parts of all ranks differ in length by at most one."""
        return items[len(items) * self.rank // self.count : len(items) * (self.rank + 1) // self.count]

    def gather(self, items: Sequence[T]) -> list[T]:
        """The items of all ranks, in rank order, on every rank."""
        parts: list[Any] = [None] * self.count
        dist.all_gather_object(parts, list(items), group=self.control)
        return [item for part in parts for item in part]

    def any(self, flag: bool) -> bool:
        """Whether any rank says so."""
        votes = torch.tensor(int(flag))
        dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self.control)
        return bool(votes)

    def together(self, work: Callable[[], T]) -> T:
        """Does work that a rank may refuse with a ValueError. If one does, all raise Refused: alone it would leave the
        others waiting, and its reason untold."""
        result, reasons = None, []
        try:
            result = work()
        except ValueError as error:
            reasons = [str(error)]
        if reasons := self.gather(reasons):
            raise Refused(reasons[0])
        return cast(T, result)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Elementwise over ranks, on the CPU."""
        values = values.cpu()
        dist.all_reduce(values, group=self.control)
        return values

    def barrier(self) -> None:
        dist.barrier(group=self.control)
