"""The engines that there are. Another one is a folder beside `builtin` and `vllm`, and a line here."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from fastgrpo.config import Config
from fastgrpo.rollout.builtin.start import check_builtin, start_builtin
from fastgrpo.rollout.engine_protocol import RolloutEngine
from fastgrpo.rollout.engine_spec import EngineSpec
from fastgrpo.rollout.vllm.start import check_vllm, start_vllm


@dataclass(frozen=True)
class EngineKind:
    check: Callable[[Config, torch.device, torch.dtype], None]
    """Raises ValueError for settings that this engine does not have, before anything is loaded."""
    start: Callable[[EngineSpec], RolloutEngine]


ENGINES = {
    "builtin": EngineKind(check_builtin, start_builtin),
    "vllm": EngineKind(check_vllm, start_vllm),
}


def start_engine(spec: EngineSpec) -> RolloutEngine:
    """The engine that the settings name. Raises ValueError for settings that it does not have."""
    return ENGINES[spec.config.rollout.engine].start(spec)


def check_engine(config: Config, device: torch.device, dtype: torch.dtype) -> None:
    """Refuses what no engine of these settings could do, before anything is loaded. Raises ValueError."""
    if config.rollout.sleep_level and config.rollout.gpus:
        raise ValueError("--rollout.sleep_level is for engines inside trainer ranks: leave it with --rollout.gpus")
    ENGINES[config.rollout.engine].check(config, device, dtype)
