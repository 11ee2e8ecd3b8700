"""What a step's data cost a trainer rank: the time to learn of all responses and to plan, and the memory of tokens.

All ranks are processes of this machine that speak over gloo, as those of a cluster do; a step has the responses of
BroRL's (512 prompts, 128 each, of up to 16,384 tokens), which are shortened. What does not depend on lengths is
measured as it is, and bytes of tokens are multiplied.
"""

import argparse
import json
import multiprocessing
import os
import socket
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from bench.harness import Row, print_table, write_results

MIB = 2**20
LONGEST, MICROBATCH = 16384, 32768


@dataclass(frozen=True)
class Size:
    ranks: int
    prompts: int
    group_size: int
    shorter: int  # so many times


FULL, QUICK = Size(64, 512, 128, 8), Size(4, 8, 4, 64)
CONTROL_S, SHARE_BAR = 1.0, 2.0


def main(argv: Sequence[str]) -> int:
    """Runs one step's exchange on all ranks. Returns 1 if a bar is not met."""
    parser = argparse.ArgumentParser("python -m bench data_plane", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few ranks and responses, no result is kept")
    size = QUICK if parser.parse_args(argv).quick else FULL
    rows = measure(size)
    share, most = (f([r["share_bytes"] for r in rows]) for f in (statistics.mean, max))
    control = max(r["control_s"] for r in rows)
    table = [
        ["time of a core, to learn of all responses and plan, s", control, CONTROL_S],
        ["tokens of the responses that a rank judges, MiB", share / MIB, "-"],
        ["the same, of the rank with the most", most / MIB, "-"],
        ["memory of what is known of all responses, MiB", max(r["known_bytes"] for r in rows) / MIB, "-"],
        ["most memory of a step, of such shares", max(r["peak_bytes"] for r in rows) / share, SHARE_BAR],
        ["if every rank had all tokens, of such shares", size.ranks, "-"],
    ]
    of = f"{size.ranks} ranks, {size.prompts} prompts, {size.prompts * size.group_size:,} responses"
    print_table(f"A step's data on the worst rank: {of}", ["what", "measured", "bar"], table)
    if size is FULL:
        headline = [[f"data plane: {what}, {of}", f"{value:.3g}", f"{bar}"] for what, value, bar in table]
        write_results("data_plane", torch.device("cpu"), headline, rows)
    met = control <= CONTROL_S and max(r["peak_bytes"] for r in rows) / share <= SHARE_BAR
    return 0 if met or size is QUICK else 1


def measure(size: Size) -> list[Row]:
    """What each rank has measured."""
    import fastgrpo.policy.learner  # noqa: F401  # once, before the ranks are forked

    context = multiprocessing.get_context("fork")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    reader, writer = context.Pipe(duplex=False)
    processes = [context.Process(target=_rank, args=(size, rank, port, writer)) for rank in range(size.ranks)]
    for process in processes:
        process.start()
    writer.close()
    try:
        rows = [json.loads(reader.recv_bytes()) for _ in processes]  # EOFError: they have ended without
    finally:
        for process in processes:
            process.kill()
    return sorted(rows, key=lambda row: row["name"])


def _rank(size: Size, rank: int, port: int, told: Any) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = dist.TCPStore("127.0.0.1", port, size.ranks, rank == 0, timedelta(seconds=300))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size.ranks, timeout=timedelta(seconds=300))
    row = _step(size, rank)
    dist.barrier()
    told.send_bytes(json.dumps(row).encode())
    dist.barrier()


def _step(size: Size, rank: int) -> Row:
    from fastgrpo.algorithm import Algorithm
    from fastgrpo.algorithm.advantages import group_normalised
    from fastgrpo.algorithm.judged_groups import JudgedGroups, all_groups
    from fastgrpo.algorithm.outcomes import Outcomes
    from fastgrpo.algorithm.scoring import with_advantages, with_rewards
    from fastgrpo.config import Config, RolloutConfig
    from fastgrpo.policy import token_exchange
    from fastgrpo.policy.packing import SequenceCost, plan_microbatches
    from fastgrpo.ranks import Ranks

    token_exchange.ROUND_BYTES //= size.shorter
    control: Any = dist.group.WORLD
    none: Any = None
    ranks = Ranks(rank, size.ranks, torch.device("cpu"), none, control, timedelta(seconds=300), none, none)
    config = Config(rollout=RolloutConfig(group_size=size.group_size))
    ranks.gather([0])  # they are connected now
    group_normalised(np.zeros(size.group_size), Outcomes.of([], config, 0))  # its kernel is loaded
    mine = _drawn(size, rank)
    before = _memory()
    start = time.process_time()
    everyone = ranks.gather([JudgedGroups.of(mine)], [JudgedGroups])
    groups = all_groups(everyone, mine, rank, _prompt_at)
    samples = with_rewards([s for group in groups for s in group], Algorithm(), config, 0)
    del groups, everyone
    samples = with_advantages(samples, Algorithm(), config, 0)
    plan = plan_microbatches(samples, size.ranks, MICROBATCH // size.shorter, SequenceCost(2.0, 1e-4))
    control_s = time.process_time() - start
    known = _memory()
    share = 8 * sum(len(s.response) for group in mine for s in group)
    _reset_peak()
    batches = token_exchange.with_tokens(plan, ranks)
    peak = _memory("VmHWM")
    assert all(s.tokens is not None for batch in batches for s in batch)
    return {
        "name": f"{rank:02d}",
        "control_s": control_s,
        "share_bytes": share * size.shorter,
        "known_bytes": known - before,
        "peak_bytes": known - before + (share + peak - known) * size.shorter,
        "trained_bytes": 8 * size.shorter * sum(len(s.response) for batch in batches for s in batch),
    }


def _drawn(size: Size, rank: int) -> list[list[Any]]:
    """The groups that a rank has judged."""
    from fastgrpo.types import Response, Sample

    noise = np.random.default_rng(rank)
    groups = []
    for position in range(rank, size.prompts, size.ranks):
        lengths = np.minimum(noise.lognormal(np.log(6000), 0.6, size.group_size), LONGEST).astype(int) // size.shorter
        groups.append(
            [
                Sample(
                    _prompt_at(position),
                    Response(np.full(n, position, np.int32), np.full(n, -0.5, np.float32), "stop", 7, 0.5),
                    correct=bool(noise.random() < 0.5),
                    score=1.0,
                )
                for n in lengths + 1
            ]
        )
    return groups


def _prompt_at(position: int) -> Any:
    from fastgrpo.types import Prompt

    return Prompt.of_ids(np.full(32, position, np.int32), position)


def _memory(name: str = "VmRSS") -> int:
    """Bytes of this process that are in memory; by the name ``VmHWM`` the most since `_reset_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")
