"""From a run's settings to where its responses come from."""

import os
from collections.abc import Callable, Iterable, Iterator

from torch import Tensor

from fastgrpo.config import Config
from fastgrpo.ranks import Ranks, Role
from fastgrpo.ranks.one_machine import LOOPBACK, is_on_one_machine
from fastgrpo.rollout.engine_spec import EngineSpec
from fastgrpo.rollout.engines import start_engine
from fastgrpo.rollout.local_rollouts import LocalRollouts
from fastgrpo.rollout.prompts_in_order import PromptsInOrder
from fastgrpo.rollout.remote.address import published
from fastgrpo.rollout.remote.engine_pool import EnginePool
from fastgrpo.rollout.remote.process import not_in_place
from fastgrpo.rollout.remote.remote_rollouts import RemoteRollouts
from fastgrpo.rollout.remote.supervisor import POOL, engines_folder
from fastgrpo.rollout.remote.weight_sender import WeightSender
from fastgrpo.rollout.rollouts import Rollouts
from fastgrpo.rollout.servers.start import servers_of
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
    """An engine in every rank, or the connection to engines that have ranks of their own.

    ``parameters`` tell names and shapes, ``weights`` gives the whole tensors of every sync; all ranks call it.
    """
    if config.rollout.samples_apart:
        return _remote(config, ranks, prompts, sampling, parameters, weights)
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
    if ranks.is_first and (note := not_in_place(engine)):
        print(f"fastgrpo: {note}", flush=True)
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


def _remote(
    config: Config,
    ranks: Ranks,
    prompts: PromptsInOrder,
    sampling: Sampling,
    parameters: Iterable[tuple[str, Tensor]],
    weights: Callable[[], Iterator[tuple[str, Tensor]]],
) -> RemoteRollouts:
    rollout = config.rollout
    dtype = EngineSpec(config, ranks.device.type, "own_process").dtype
    pool, sender = None, None
    if ranks.is_first:
        servers = servers_of(config, str(dtype).removeprefix("torch.")) if rollout.servers else None
        pool = EnginePool(
            servers.host_of_trainer() if servers else LOOPBACK if is_on_one_machine() else os.environ["MASTER_ADDR"],
            len(servers.urls) if servers else Role.of_this_rank(rollout.gpus).num_samplers // rollout.tensor_parallel,
            config.deadline,
            rollout.max_engine_restarts,
            rollout.max_sequences,
            pinned=rollout.max_staleness == 0 and rollout.oversample == 1,
            servers=servers,
        )
        wire = manifest(parameters, dtype)
        sender = WeightSender(pool, wire, ranks.device, config.deadline.sync_s)
        if servers is None:
            ranks.store.set(POOL, published(pool.address, engines_folder(config)))
    return RemoteRollouts(pool, sender, config, ranks, prompts, sampling, weights, dtype)
