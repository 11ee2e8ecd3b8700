"""Weight syncs to several vLLM servers beside syncs to one, over HTTP and the broadcast, as a run does them.

The servers are processes of this machine, whose cores and memory their writes share: on hosts of their own several
cost less.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bench import vllm_models
from bench.broadcast import QWEN25_0_5B
from bench.harness import Row, child_environment, print_table, spread_frac, write_results
from bench.shapes import QUICKSTART, Shape
from fastgrpo.ranks.children import ending_with_parent

if TYPE_CHECKING:
    from fastgrpo.config import Config

NUM_SERVERS, ROUNDS, SYNCS, QUICK_SYNCS = 4, 3, 5, 2
READY_S = 300.0
BAR = 1.3
DTYPE = torch.bfloat16
CPU = torch.device("cpu")


def main(argv: Sequence[str]) -> int:
    """Times syncs of each model to one server and to all. Returns 1 if one failed. Without vLLM, it prints that nothing
    is measured."""
    parser = argparse.ArgumentParser("python -m bench server_sync", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small model and few syncs, no result is kept")
    quick = parser.parse_args(argv).quick
    if reason := vllm_models.why_no_vllm():
        print(f"server_sync is not measured: {reason}")
        return 0
    rows = []
    for shape in (QUICKSTART,) if quick else (QUICKSTART, QWEN25_0_5B):
        try:
            rows.append(measure(shape, 1 if quick else ROUNDS, QUICK_SYNCS if quick else SYNCS))
        except (OSError, RuntimeError) as error:
            print(f"bench server_sync: {shape.name}: {error}", file=sys.stderr)
            return 1
    columns = ["model", "MB", "ms to one", f"ms to {NUM_SERVERS}", "ratio", "spread", "bar"]
    table = [[r["name"], r["mb"], r["one_ms"], r["all_ms"], r["ratio"], f"{r['spread_frac']:.0%}", BAR] for r in rows]
    print_table("Weight syncs to servers on this machine", columns, table)
    if not quick:
        headline = [
            [f"sync to {NUM_SERVERS} servers beside one, {r['name']}", f"{r['ratio']:.2f}x", f"{BAR:g}x"] for r in rows
        ]
        write_results("server_sync", CPU, headline, rows)
    return 0


def measure(shape: Shape, rounds: int, syncs: int) -> Row:
    """The medians over syncs to one server and to all, which take turns."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        model = folder / "model"
        vllm_models.write_model(shape, DTYPE, model, CPU)
        weights = vllm_models.new_weights(model, CPU)
        config = _config(model)
        urls = stack.enter_context(_serving(config, folder))
        found: dict[int, list[float]] = {1: [], NUM_SERVERS: []}
        for _ in range(rounds):
            for count, seconds in found.items():
                seconds += _syncs(_with_servers(config, urls[:count]), weights, syncs)
    one, every = (statistics.median(seconds) for seconds in found.values())
    return {
        "name": shape.name,
        "mb": sum(w.numel() * w.element_size() for w in weights.values()) / 1e6,
        "one_ms": 1e3 * one,
        "all_ms": 1e3 * every,
        "ratio": every / one,
        "spread_frac": max(map(spread_frac, found.values())),
    }


def _with_servers(config: "Config", urls: Sequence[str]) -> "Config":
    return replace(config, rollout=replace(config.rollout, servers=tuple(urls)))


def _config(model: Path) -> "Config":
    from fastgrpo.config import Config, DataConfig, ModelConfig, RolloutConfig

    rollout = RolloutConfig(
        engine="vllm", max_response_tokens=64, max_sequences=4, kv_cache_gib=0.1, dtype="bfloat16", servers=("-",)
    )
    return Config(model=ModelConfig(path=str(model)), data=DataConfig(max_prompt_tokens=64), rollout=rollout)


@contextmanager
def _serving(config: "Config", folder: Path) -> Iterator[list[str]]:
    """The addresses of servers that are ready. Raises RuntimeError if one does not come to be."""
    from fastgrpo.ranks.launch import free_port
    from fastgrpo.rollout.servers.command import server_command, server_environment

    environment = child_environment() | server_environment("", config, True) | {"OMP_NUM_THREADS": "1"}
    started = []
    try:
        for number in range(NUM_SERVERS):
            port, log = free_port(), folder / f"{number}.log"
            with log.open("wb") as output:
                command = ending_with_parent(server_command(config, "127.0.0.1", port, True))
                process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
            started.append((f"http://127.0.0.1:{port}", process, log))
            _wait_until_ready(*started[-1])
        yield [url for url, _, _ in started]
    finally:
        for _, process, _ in started:
            process.terminate()
            process.wait(60)


def _wait_until_ready(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + READY_S
    while process.poll() is None and time.monotonic() < end:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=2).close()
            return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"a server did not become ready: {log.read_text(errors='replace')[-2000:]}")


def _syncs(config: "Config", weights: dict[str, Any], count: int) -> list[float]:
    """Seconds of so many syncs; the first one, in which sender and servers meet and compare, is not counted."""
    from fastgrpo.config import ParallelConfig
    from fastgrpo.ranks import Ranks
    from fastgrpo.rollout.servers.start import start_servers
    from fastgrpo.rollout.weight_sync import manifest
    from fastgrpo.types import Sampling

    ranks = Ranks.connect(CPU, ParallelConfig())
    prompts: Any = None  # nothing is drawn
    wire = manifest(weights.items(), DTYPE)
    rollouts = start_servers(config, ranks, prompts, Sampling(1, 1), wire, lambda: iter(weights.items()), DTYPE)
    try:
        rollouts.pool.wait(lambda: len(rollouts.pool.present) == len(config.rollout.servers), READY_S)
        found = []
        for version in range(count + 1):
            start = time.perf_counter()
            rollouts.sync(version)
            found.append(time.perf_counter() - start)
        assert len([s for s in rollouts.pool.servers if s.version == count]) == len(config.rollout.servers)
        return found[1:]
    finally:
        rollouts.close()
        ranks.disconnect()
