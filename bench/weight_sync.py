"""Writing weights into a live vLLM in the same process: our write, vLLM's own reload, and a copy of the same bytes.

Before every write the engine has other values. After the first and the last write of every kind all weights are
compared: if one has not arrived, the exit code is 1.
"""

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench import vllm_models
from bench.broadcast import QWEN25_0_5B
from bench.harness import PeakMemory, print_table, spread_frac, synchronize, write_results
from bench.shapes import QUICKSTART, QWEN25_1_5B

DTYPE = torch.bfloat16
MEMCPY, WRITE, LOAD, BROADCAST = "memcpy", "write into live views", "load_weights, live", "gloo broadcast into views"
REPACK, RELOAD_LIVE, RELOAD = "write and repack", "native reload, live", "native reload"
BAR_OF_MEMCPY = 1.5
BAR_OF_NATIVE = {"cpu": 10.0, "cuda": 20.0}
POISON = 0.5
KNOWN_STALE = frozenset({"lm_head"})
"""On a CPU vLLM's reload does not renew the packed copy of a tied head. That is vLLM's error; the rest is timed."""

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Way:
    """A way to write. ``poison`` writes other values before, ``write`` is timed, ``wrong`` names the wrong weights."""

    write: Callable[[], Any]
    poison: Callable[[], Any]
    wrong: Callable[[], Iterable[str]]
    excused: frozenset[str] = frozenset()


@dataclass
class Found:
    seconds: list[float] = field(default_factory=list)
    wrong: set[str] = field(default_factory=set)
    excused: set[str] = field(default_factory=set)
    peak_bytes: int = 0

    def compare(self, way: Way) -> None:
        """Notes the weights that are wrong after a write."""
        wrong = set(way.wrong())
        self.wrong |= wrong - way.excused
        self.excused |= wrong & way.excused


def main(argv: Sequence[str]) -> int:
    """Measures. Returns 1 if a weight was wrong after a write, else 0, also without vLLM."""
    options = _options(argv)
    if reason := vllm_models.why_no_vllm():
        print(f"weight_sync is not measured: {reason}")
        return 0
    vllm_models.quiet()
    device = torch.device(options.device)
    shape = QUICKSTART if options.quick else (QWEN25_1_5B if device.type == "cuda" else QWEN25_0_5B)
    with tempfile.TemporaryDirectory() as folder, vllm_models.one_process_group():
        vllm_models.write_model(shape, DTYPE, Path(folder), device)
        weights = vllm_models.new_weights(Path(folder), device)
        with Engines(Path(folder), device, weights) as engines:
            found = measure(engines.ways(), device, options.rounds)
            checksum_s = engines.checksum_s()
    num_bytes = sum(w.nbytes for w in weights.values())
    return report(f"{shape.name}, {len(weights)} tensors", num_bytes, found, checksum_s, device, options.quick)


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench weight_sync", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--quick", action="store_true", help="a tiny model, two rounds, no result is kept")
    parser.add_argument("--rounds", type=int, default=7, help="writes of every way, in turns")
    options = parser.parse_args(argv)
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    if options.quick:
        options.rounds = 2
    return options


def poison_of(weights: Weights) -> Iterable[tuple[str, Tensor]]:
    """Values that no weight has, in the same shapes; they take no memory."""
    return ((n, torch.full((), POISON, dtype=w.dtype, device=w.device).expand(w.shape)) for n, w in weights.items())


# The ways.


def memcpy_way(source: Tensor, target: Tensor) -> Way:
    """A copy of all bytes between two buffers, than which no write can be faster."""
    assert source.untyped_storage().data_ptr() != target.untyped_storage().data_ptr(), "nothing would be copied"
    return Way(
        lambda: target.copy_(source),
        lambda: target.zero_(),
        lambda: [] if torch.equal(source, target) else ["the copy"],
    )


def touched(num_bytes: int, device: torch.device) -> Tensor:
    """A buffer whose pages are already mapped, which would slow down a first write."""
    return torch.randint(1, 256, (num_bytes,), dtype=torch.uint8, device=device)


def live_way(write: Callable[[], Any], live: Any, weights: Weights, addresses: Callable[[], Any] = dict) -> Way:
    """A write to a model's live parameters, checked by the checksums of all weights and the parameters' addresses."""
    from fastgrpo.rollout.weight_sync import checksum

    right = {name: checksum(value) for name, value in weights.items()}
    placed = addresses()

    def wrong() -> list[str]:
        held = live.checksums()
        moved = ["parameters that moved"] if addresses() != placed else []
        return [name for name in right | held if right.get(name) != held.get(name)] + moved

    return Way(write, lambda: live.write(poison_of(weights)), wrong)


def differing(model: nn.Module, oracle: nn.Module) -> list[str]:
    """Layers that do not compute what the oracle's parameters of the same name give, and parameters that differ.

    A packed copy can only be checked by what the layer computes.
    """
    theirs = dict(oracle.named_modules())
    wrong = []
    for name, module in model.named_modules():
        weight = getattr(theirs[name], "weight", None)
        if hasattr(module, "cpu_linear") and weight is not None and weight.dim() == 2:
            if not _computes(module, weight):
                wrong.append(name)
        else:
            pairs = zip(module.named_parameters(recurse=False), theirs[name].parameters(recurse=False), strict=True)
            wrong += [f"{name}.{n}" for (n, ours), right in pairs if not torch.equal(ours, right)]
    return wrong


def _computes(module: Any, weight: Tensor) -> bool:
    """Whether a layer multiplies with this weight, up to bfloat16's rounding; other weights differ by far more."""
    x = torch.randn(4, weight.shape[1], dtype=weight.dtype, generator=torch.Generator().manual_seed(0))
    right = nn.functional.linear(x.float(), weight.float())
    found = module.cpu_linear(x, getattr(module, "weight", None), None).float()
    return bool((found - right).norm() < 0.05 * right.norm())


class Engines:
    """The engines that are written to.

    The layers of one read their parameters. On a CPU vLLM's layers read packed copies, so there are two more: one whose
    copies are renewed by us, and one as vLLM makes it.
    """

    def __init__(self, folder: Path, device: torch.device, weights: Weights) -> None:
        self.folder, self.device, self.weights = folder, device, weights
        on_cpu = device.type == "cpu"
        self.as_shipped = vllm_models.dispatch_as_shipped() if on_cpu else contextlib.nullcontext
        self.live = vllm_models.start(folder, device, DTYPE)
        if self.live.not_in_place:
            raise RuntimeError(f"vLLM's weights cannot be written in place: {self.live.not_in_place}")
        self.repacked = vllm_models.start(folder, device, DTYPE, cpu_layers="repack") if on_cpu else None
        with self.as_shipped():
            self.native = vllm_models.start(folder, device, DTYPE, cpu_layers=None) if on_cpu else None
        self.sender: Any = None

    def __enter__(self) -> "Engines":
        return self

    def __exit__(self, *_: object) -> None:
        if self.sender is not None:
            self.sender.close()
        for engine in (self.live, self.repacked, self.native):
            if engine is not None:
                engine.close()

    def ways(self) -> dict[str, Way]:
        worker = vllm_models.worker(self.live)
        model = worker.model_runner.get_model()
        live = vllm_models.live_weights(model)

        num_bytes = sum(w.nbytes for w in self.weights.values())

        def way(write: Callable[[], Any]) -> Way:
            return live_way(write, live, self.weights, worker.sync_addresses)

        ways = {
            MEMCPY: memcpy_way(*(touched(num_bytes, self.device) for _ in range(2))),
            WRITE: way(lambda: self.live.write_weights(self.weights.items(), 1)),
            LOAD: way(lambda: model.load_weights(self.weights.items())),
            RELOAD_LIVE if self.native else RELOAD: way(lambda: reload(worker, self.weights.items())),
        }
        if self.repacked is not None and self.native is not None:
            ways |= {REPACK: self._repack_way(model), RELOAD: self._native_way(model), BROADCAST: way(self._receive)}
            self._meet_sender()
        return ways

    def _repack_way(self, oracle: nn.Module) -> Way:
        engine = self.repacked
        worker = vllm_models.worker(engine)
        model = worker.model_runner.get_model()
        live = vllm_models.live_weights(model)
        way = live_way(lambda: engine.write_weights(self.weights.items(), 1), live, self.weights, worker.sync_addresses)
        return Way(way.write, way.poison, lambda: [*way.wrong(), *differing(model, oracle)])

    def _native_way(self, oracle: nn.Module) -> Way:
        worker = vllm_models.worker(self.native)
        model = worker.model_runner.get_model()

        def write(weights: Iterable[tuple[str, Tensor]]) -> None:
            with self.as_shipped():
                reload(worker, weights)

        return Way(
            lambda: write(self.weights.items()),
            lambda: write(poison_of(self.weights)),
            lambda: differing(model, oracle),
            KNOWN_STALE,
        )

    def _meet_sender(self) -> None:
        from bench.weight_sender import SendingProcess

        self.sender = SendingProcess(self.folder)
        sender = self.sender
        self.live._rpc("receive_join", "127.0.0.1", sender.port, 1, 2, sender.timeout_s, sender.manifest)

    def _receive(self) -> None:
        self.sender.send()
        self.live._rpc("receive_weights")
        self.live.weights_changed(1)

    def checksum_s(self) -> float:
        started = time.perf_counter()
        self.live.checksums()
        return time.perf_counter() - started


def reload(worker: Any, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Runs vLLM's layerwise reload, which its own weight transfer does between its start and its finish."""
    worker.reload_weights(weights_iterator=iter(weights))


# The measurement.


def measure(ways: dict[str, Way], device: torch.device, rounds: int) -> dict[str, Found]:
    """Measures all ways in turns, after a round that warms up and measures the memory of each."""
    found = {name: Found() for name in ways}
    for name, way in ways.items():
        way.poison()
        with PeakMemory(device) as peak:
            way.write()
            synchronize(device)
        found[name].peak_bytes = peak.bytes
        found[name].compare(way)
    for last in [False] * (rounds - 1) + [True]:
        for name, way in ways.items():
            way.poison()
            synchronize(device)
            started = time.perf_counter()
            way.write()
            synchronize(device)
            found[name].seconds.append(time.perf_counter() - started)
            if last:
                found[name].compare(way)
    return found


def rows_of(found: dict[str, Found], num_bytes: int) -> dict[str, dict[str, Any]]:
    limit = statistics.median(found[MEMCPY].seconds)
    rows = {}
    for name, way in found.items():
        median_s = statistics.median(way.seconds)
        rows[name] = {
            "ms": 1e3 * median_s,
            "gb_per_s": num_bytes / median_s / 1e9,  # of payload: a copy's reads and writes count once
            "of_memcpy": median_s / limit,
            "peak_mib": way.peak_bytes / 2**20,
            "spread_frac": spread_frac(way.seconds),
            "rounds": len(way.seconds),
            "wrong": sorted(way.wrong),
            "left_stale_by_vllm": sorted(way.excused),
        }
    return rows


def report(
    what: str, num_bytes: int, found: dict[str, Found], checksum_s: float, device: torch.device, quick: bool
) -> int:
    """Prints the rows, the bars and the ratio to vLLM's reload, and writes the results unless it was a quick run.

    Returns the exit code.
    """
    from fastgrpo.config import SyncConfig

    rows, bucket_mib = rows_of(found, num_bytes), SyncConfig().bucket_mib
    print_table(
        f"{what}, {num_bytes / 1e6:,.3g} MB in {DTYPE}, into vLLM in this process, {torch.get_num_threads()} threads",
        ("way", "ms", "GB/s", "times memcpy", "MiB above the model", "spread", "stale"),
        [
            [name, r["ms"], r["gb_per_s"], r["of_memcpy"], r["peak_mib"], f"{r['spread_frac']:.0%}", _stale(r)]
            for name, r in rows.items()
        ],
    )
    ours, bar = rows[WRITE], BAR_OF_NATIVE[device.type]
    if REPACK in rows:
        print(f"of {REPACK} the repack alone takes {rows[REPACK]['ms'] - ours['ms']:.3g} ms")
    print(f"checksums of all weights in the engine, every 50 syncs: {1e3 * checksum_s:.3g} ms")
    print(f"memory above the model during {WRITE}: {ours['peak_mib']:.3g} MiB, bar one bucket of {bucket_mib} MiB")
    print(f"{WRITE} takes {ours['of_memcpy']:.3g} times memcpy, bar {BAR_OF_MEMCPY:g}")
    if REPACK in rows:
        for theirs, other in ((RELOAD_LIVE, WRITE), (RELOAD, REPACK)):  # of the same layers
            print(f"{theirs} over {other}: {rows[theirs]['ms'] / rows[other]['ms']:.3g}")
    ratio = rows[RELOAD]["ms"] / ours["ms"]
    if not quick:
        print(
            write_results(
                "weight_sync",
                device,
                _headline(what, rows, ratio, bar),
                {"ways": rows, "checksum_ms": 1e3 * checksum_s},
            )
        )
    for name, row in rows.items():
        if row["wrong"]:
            print(f"bench weight_sync: {name} left {', '.join(row['wrong'][:5])}", file=sys.stderr)
    print(f"{RELOAD} over {WRITE}: {ratio:.3g}, bar {bar:g}")
    return 1 if any(row["wrong"] for row in rows.values()) else 0


def _stale(row: dict[str, Any]) -> str:
    names = [*row["wrong"], *(f"{n} (vLLM's)" for n in row["left_stale_by_vllm"])]
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else "".join(names) or "none"


def _headline(what: str, rows: dict[str, dict[str, Any]], ratio: float, bar: float) -> list[list[str]]:
    ours, limit = rows[WRITE], rows[MEMCPY]
    return [
        [
            f"{WRITE}, {what}",
            f"{ours['ms']:.3g} ms, {ours['of_memcpy']:.3g}x memcpy",
            f"memcpy {limit['ms']:.3g} ms, bar {BAR_OF_MEMCPY:g}x",
        ],
        [f"{RELOAD} over {WRITE}", f"{ratio:.3g}x", f"bar {bar:g}x; {RELOAD} {rows[RELOAD]['ms']:.3g} ms"],
    ]
