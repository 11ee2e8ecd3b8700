"""AdamW with a warm-up, on gradients of one global norm."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from fastgrpo.config import OptimizerConfig


def make_optimizer(parameters: list[nn.Parameter], config: OptimizerConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        parameters,
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def step_unless(skip: Tensor, optimizer: torch.optim.AdamW, learning_rate: float) -> None:
    """Updates the weights, unless the flag [] on their device is true: what gradient scalers hand to fused AdamW."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.found_inf = skip.float()  # type: ignore[attr-defined]
    optimizer.step()


def learning_rate(config: OptimizerConfig, step: int) -> float:
    """The learning rate of step 1, 2, ...: a linear rise to the constant, which is reached at ``warmup_steps``."""
    return config.learning_rate * min(1.0, step / max(1, config.warmup_steps))


def local_gradients(parameters: list[nn.Parameter]) -> list[Tensor]:
    """This rank's shards; a parameter that took no part has none."""
    return [p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad for p in parameters if p.grad is not None]


def gradient_norm(gradients: list[Tensor], mesh: DeviceMesh) -> Tensor:  # []
    """2-norm over all shards, float64 of float32 squares; the same on every rank."""
    squares = torch.stack(torch._foreach_norm(gradients)).double().square().sum()
    dist.all_reduce(squares, group=mesh.get_group("shard"))
    return squares.sqrt()


def clip(gradients: list[Tensor], norm: Tensor, max_norm: float) -> None:
    """Scales gradients in place so that their norm is at most ``max_norm``."""
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0).to(gradients[0].dtype)
    torch._foreach_mul_(gradients, scale)
