"""The engines that there are. Another one is a folder beside `builtin` and `vllm`, and a line here."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from fastgrpo.command_line import did_you_mean
from fastgrpo.config import Config
from fastgrpo.rollout.builtin.start import builtin_of, check_builtin, start_builtin
from fastgrpo.rollout.engine_protocol import RolloutEngine
from fastgrpo.rollout.engine_spec import EngineSpec
from fastgrpo.rollout.vllm.start import check_vllm, start_vllm


@dataclass(frozen=True)
class EngineKind:
    check: Callable[[Config, torch.device, torch.dtype], None]
    """Raises ValueError for settings that this engine does not have, before anything is loaded."""
    start: Callable[[EngineSpec], RolloutEngine]
    tells_entropy: bool
    """Whether its responses carry the mean entropy of their tokens, so that the trainer need not compute it."""
    of_model: Callable[[PreTrainedModel], RolloutEngine] | None = None
    """An engine of a model that is in this process already; not every engine can be made of one."""


ENGINES = {
    "builtin": EngineKind(check_builtin, start_builtin, tells_entropy=True, of_model=builtin_of),
    "vllm": EngineKind(check_vllm, start_vllm, tells_entropy=False),
}


def engine_kind(name: str) -> EngineKind:
    """The engine of this name. Raises ValueError if there is none."""
    if name not in ENGINES:
        near = did_you_mean(name, list(ENGINES))
        raise ValueError(f"there is no engine {name!r} (--rollout.engine){near}: needed one of {', '.join(ENGINES)}")
    return ENGINES[name]


def start_engine(spec: EngineSpec) -> RolloutEngine:
    """The engine that the settings name. Raises ValueError for settings that it does not have."""
    return engine_kind(spec.config.rollout.engine).start(spec)


def check_engine(config: Config, device: torch.device, dtype: torch.dtype) -> None:
    """Refuses what no engine of these settings could do, before anything is loaded. Raises ValueError."""
    if config.rollout.sleep_level and config.rollout.samples_apart:
        raise ValueError("--rollout.sleep_level is for engines inside trainer ranks: leave it where others sample")
    if config.rollout.servers:
        return  # they are asked when they are there
    engine_kind(config.rollout.engine).check(config, device, dtype)
