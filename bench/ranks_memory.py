"""Peak memory of an update on every rank, by model and number of GPUs, with FSDP2 and HSDP.

It needs that many GPUs, real ones or those of `tests/fake_gpu`, where memory is true as well.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from bench.harness import (
    GIB,
    Row,
    bench_command,
    child_environment,
    exit_code,
    free_cached,
    print_table,
    reason,
    write_results,
)
from bench.shapes import QWEN25_1_5B, QWEN25_7B, QWEN25_32B, Shape
from bench.torchrun import run_to_end, torchrun

if TYPE_CHECKING:
    from fastgrpo.ranks import Ranks

TOKENS = 16384  # of a micro-batch; an update has two on every rank
LAUNCH_S = 300.0
_ROW = "row: "
SHAPES = (QWEN25_1_5B, QWEN25_7B, QWEN25_32B)


@dataclass(frozen=True)
class Case:
    shape: Shape
    ranks: int
    replicas: int
    reduce_every_microbatch: bool

    @property
    def name(self) -> str:
        layout = f"{self.replicas} x {self.ranks // self.replicas}" if self.replicas > 1 else str(self.ranks)
        kept = "reduced every micro-batch" if self.reduce_every_microbatch else "whole gradients between micro-batches"
        return f"{self.shape.name} on {layout}, {kept}"


def cases(ranks: int) -> list[Case]:
    """The cases of a launch: every model sharded over all ranks, and in two replicas if each has several ranks."""
    layouts = (1, 2) if ranks >= 4 else (1,)
    return [Case(s, ranks, replicas, each) for s in SHAPES for replicas in layouts for each in (False, True)]


def main(argv: Sequence[str]) -> int:
    """Measures. Returns 1 if a launch failed; out of memory is a result and no failure."""
    parser = argparse.ArgumentParser(prog="bench ranks_memory", description=__doc__)
    parser.add_argument("--device", default="cuda", choices=("cuda",))
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.worker:
        _measure_all()
        return 0
    rows: list[Row] = []
    failed: dict[str, str] = {}
    for count in options.ranks:
        found, why = _launched(count)
        rows += found
        if why:
            failed[f"{count} ranks"] = why
        print(_write(rows))
    columns = ("model, GPUs, gradients", "peak GiB", "reserved", "of it masters and moments")
    print_table(f"a rank's peak, {TOKENS:,} tokens, checkpointed", columns, [_line(row) for row in rows])
    return exit_code("ranks_memory", failed)


def _launched(ranks: int) -> tuple[list[Row], str]:
    command = torchrun(ranks, *bench_command("ranks_memory", "--worker"))
    try:
        done = run_to_end(command, child_environment(), LAUNCH_S, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except subprocess.TimeoutExpired:
        return [], f"took longer than {LAUNCH_S:.0f} s"
    rows = [json.loads(line.removeprefix(_ROW)) for line in done.stdout.splitlines() if line.startswith(_ROW)]
    if done.returncode:
        print(done.stderr[-3000:], file=sys.stderr)
    return rows, f"exit code {done.returncode}" if done.returncode else ""


def _measure_all() -> None:
    from fastgrpo.config import ParallelConfig
    from fastgrpo.ranks import Ranks, choose_device, launched_ranks

    rank, count = launched_ranks()
    device = choose_device("cuda")
    connected = Ranks.connect(device, ParallelConfig())
    meshes = {
        replicas: init_device_mesh("cuda", (replicas, count // replicas), mesh_dim_names=("replica", "shard"))
        for replicas in {case.replicas for case in cases(count)}
    }
    for case in cases(count):
        ranks = replace(connected, mesh=meshes[case.replicas])
        row = {"name": case.name, "model": case.shape.name, "ranks": count, "replicas": case.replicas}
        row |= {"reduce_every_microbatch": case.reduce_every_microbatch, **_peaks(case, ranks)}
        free_cached(device)
        if rank == 0:
            print(_ROW + json.dumps(row), flush=True)
    connected.disconnect()


def _peaks(case: Case, ranks: "Ranks") -> Row:
    """The largest peak of any rank in the second update, when AdamW's moments exist."""
    shard = 12 * case.shape.num_parameters / (case.ranks // case.replicas)
    try:
        allocated, reserved = _second_update(case, ranks)
    except torch.OutOfMemoryError as error:
        return {"out_of_memory": reason(error), "masters_and_moments_gib": shard / GIB}
    peaks = [0.0] * ranks.count
    dist.all_gather_object(peaks, allocated, group=ranks.control)
    return {"peak_gib": max(peaks) / GIB, "reserved_gib": reserved / GIB, "masters_and_moments_gib": shard / GIB}


def _second_update(case: Case, ranks: "Ranks") -> tuple[int, int]:
    from bench.synthetic import random_learner, random_sequences
    from fastgrpo.config import ModelConfig, OptimizerConfig
    from fastgrpo.policy.token_sums import TokenSums

    settings = OptimizerConfig(
        tokens_per_microbatch=TOKENS, reduce_every_microbatch=case.reduce_every_microbatch, share_prompts=False
    )
    learner = random_learner(case.shape, ranks, ModelConfig(activation_checkpointing=True), settings, unfilled=True)
    sequences = random_sequences(case.shape, [TOKENS] * 2 * ranks.count, 128)
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        learner.backward(learner.pack(sequences), TokenSums.zero(ranks.device))
        learner.apply(1e-6)
    return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()


def _line(row: Row) -> list[Any]:
    peak = row.get("peak_gib", "out of memory")
    return [row["name"], peak, row.get("reserved_gib"), row["masters_and_moments_gib"]]


def _write(rows: Sequence[Row]) -> Path:
    fitting = [r for r in rows if "peak_gib" in r]
    headline = [(r["name"], f"{r['peak_gib']:.1f} GiB", "of a GPU") for r in fitting]
    return write_results("ranks_memory", torch.device("cuda"), headline, {"tokens": TOKENS, "rows": list(rows)})
