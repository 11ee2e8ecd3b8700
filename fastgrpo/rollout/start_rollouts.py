"""From a run's settings to where its responses come from."""

import os
from collections.abc import Callable, Iterable, Iterator

from torch import Tensor

from fastgrpo.config import Config
from fastgrpo.ranks import Ranks
from fastgrpo.rollout.engine_spec import EngineSpec
from fastgrpo.rollout.engines import start_engine
from fastgrpo.rollout.local_rollouts import LocalRollouts
from fastgrpo.rollout.prompts_in_order import PromptsInOrder
from fastgrpo.rollout.rollouts import Rollouts
from fastgrpo.rollout.weight_sync import manifest
from fastgrpo.types import Sampling


def start_rollouts(
    config: Config,
    ranks: Ranks,
    prompts: PromptsInOrder,
    sampling: Sampling,
    parameters: Iterable[tuple[str, Tensor]],
    weights: Callable[[], Iterator[tuple[str, Tensor]]],
) -> Rollouts:
    """An engine in every rank, or the connection to servers.

    ``parameters`` tell names and shapes, ``weights`` gives the whole tensors of every sync; all ranks call it.
    """
    if config.rollout.samples_apart:
        return _apart(config, ranks, prompts, sampling, parameters, weights)
    return _local(config, ranks, prompts, sampling, weights)


def _local(
    config: Config,
    ranks: Ranks,
    prompts: PromptsInOrder,
    sampling: Sampling,
    weights: Callable[[], Iterator[tuple[str, Tensor]]],
) -> LocalRollouts:
    spec = EngineSpec(config, ranks.device.type, "in_rank" if "RANK" in os.environ else "own_process")
    engine = start_engine(spec)
    if ranks.is_first and engine.not_in_place:
        reason = f"weights are loaded anew at every sync, not written in place: {engine.not_in_place}"
        print(f"fastgrpo: {reason}", flush=True)
    return LocalRollouts(
        engine,
        ranks,
        prompts,
        sampling,
        weights,
        spec.dtype,
        tensor_parallel=config.rollout.tensor_parallel,
        oversample=config.rollout.oversample,
        compare_every=config.sync.compare_every,
    )


def _apart(
    config: Config,
    ranks: Ranks,
    prompts: PromptsInOrder,
    sampling: Sampling,
    parameters: Iterable[tuple[str, Tensor]],
    weights: Callable[[], Iterator[tuple[str, Tensor]]],
) -> Rollouts:
    from fastgrpo.rollout.servers.start import start_servers  # who has no servers need not have an HTTP client

    dtype = EngineSpec(config, ranks.device.type, "own_process").dtype
    return start_servers(config, ranks, prompts, sampling, manifest(parameters, dtype), weights, dtype)
