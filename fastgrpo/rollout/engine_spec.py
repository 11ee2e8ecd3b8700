"""What an engine needs to know, whichever process it is in."""

from dataclasses import dataclass
from typing import Literal

import torch

from fastgrpo.config import Config
from fastgrpo.models.load import compute_dtype


@dataclass(frozen=True)
class EngineSpec:
    config: Config
    device_type: str
    placement: Literal["in_rank", "own_process"]
    """``in_rank``: in a rank of the launch, beside the other ranks' engines. ``own_process``: in a process that is no
    rank: one that only samples, or a trainer without a launcher."""

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", torch.cuda.current_device()) if self.device_type == "cuda" else torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights as they come to the engine."""
        dtype = engine_dtype(self.config, torch.device(self.device_type))
        return torch.bfloat16 if dtype == torch.float8_e4m3fn else dtype


def engine_dtype(config: Config, device: torch.device) -> torch.dtype:
    """The dtype that the engine computes in."""
    if config.rollout.dtype == "auto":
        return compute_dtype(config.model, device)
    return torch.float8_e4m3fn if config.rollout.dtype == "fp8" else getattr(torch, config.rollout.dtype)
