"""Broadcasts a model's tensors in place from a trainer's rank to engines: NCCL on GPUs, gloo on a CPU.

On a GPU machine `--device cuda` builds and runs bench/nccl; `--nccl-tests PATH` runs NVIDIA's own program beside it.
"""

import argparse
import json
import math
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from bench import nccl_tests
from bench.harness import ROOT, exit_code, interleaved, print_table, spread_frac, write_results
from bench.shapes import QUICKSTART, QWEN25_1_5B, Shape

QWEN25_0_5B = Shape("Qwen2.5-0.5B", "qwen2", 24, 896, 4864, 14, 2, 64, 151936)
BUCKET_BYTES = 256 * 2**20
TIMEOUT_S = 300.0
EXIT_USER_ERROR = 2
MEMCPY, FLAT, ONE_BY_ONE, BUCKETS, GROUPED = "memcpy", "flat", "one by one", "buckets", "grouped"
CPU = torch.device("cpu")


class TensorSize(NamedTuple):
    name: str
    dtype: str  # as torch calls it
    num_elements: int

    @property
    def num_bytes(self) -> int:
        return self.num_elements * getattr(torch, self.dtype).itemsize


class CannotMeasure(RuntimeError):
    """NCCL cannot run here; the message says what is missing."""


def main(argv: Sequence[str]) -> int:
    """Measures. Returns 1 if a byte did not arrive or a run failed, 2 for options that cannot be, else 0."""
    options = _options(argv)
    try:
        reference = nccl_tests.binary(options.nccl_tests) if options.nccl_tests else None
    except ValueError as error:
        print(f"bench broadcast: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    if options.device == "cuda":
        try:
            return on_gpus(options, reference)
        except CannotMeasure as reason:
            print(f"NCCL is not measured: {reason}")
        except (ValueError, RuntimeError) as error:
            print(f"bench broadcast: {error}", file=sys.stderr)
            return 1
    else:
        print("NCCL is not measured: that needs --device cuda and two GPUs")
    return on_cpu(options)


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench broadcast", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--quick", action="store_true", help="a tiny model, two rounds")
    parser.add_argument("--rounds", type=int, default=10, help="runs of every row; on a CPU in turns")
    parser.add_argument("--gpus", type=int, help="default: all of this node")
    parser.add_argument("--nccl-tests", type=Path, metavar="PATH", help="its checkout, built, or its broadcast_perf")
    options = parser.parse_args(argv)
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    if options.gpus is not None and options.gpus < 2:
        parser.error("--gpus must be at least 2")
    if options.nccl_tests and options.device != "cuda":
        parser.error("--nccl-tests needs --device cuda")
    if options.quick:
        options.rounds = 2
    return options


def tensor_list(shape: Shape, dtype: torch.dtype = torch.bfloat16) -> list[TensorSize]:
    """The tensors that a sync sends, in its order: the model's parameters, a tied head once."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape.transformers_config(), dtype=dtype)
    return [TensorSize(name, str(p.dtype).removeprefix("torch."), p.numel()) for name, p in model.named_parameters()]


def write_list(tensors: Sequence[TensorSize], path: Path) -> None:
    """Writes the list that bench/nccl/broadcast.cpp reads: a line with name, dtype and number of elements a tensor."""
    path.write_text("".join(f"{t.name} {t.dtype} {t.num_elements}\n" for t in tensors), encoding="utf-8")


# NCCL


def on_gpus(options: argparse.Namespace, reference: Path | None) -> int:
    """Measures NCCL. Raises CannotMeasure without GPUs, NCCL or a compiler, RuntimeError or ValueError if it fails."""
    visible = torch.cuda.device_count()
    num_gpus = options.gpus or max(visible, 2)
    if visible < num_gpus:
        raise CannotMeasure(f"it needs {num_gpus} GPUs, there are {visible}")
    shape = QUICKSTART if options.quick else QWEN25_1_5B
    tensors = tensor_list(shape)
    with tempfile.TemporaryDirectory() as folder:
        write_list(tensors, Path(folder) / "tensors.txt")
        arguments = [str(Path(folder) / "tensors.txt"), "--gpus", str(num_gpus), "--iterations", str(options.rounds)]
        found = run_program(build_program(ROOT / "build" / "nccl"), arguments)
    rows = {GROUPED: found["grouped"], ONE_BY_ONE: found["one_by_one"], FLAT: found["flat"]}
    print_table(
        f"{_described(shape, tensors)}, NCCL over {num_gpus} GPUs",
        ("way", "ms", "algbw GB/s", "busbw GB/s", "of flat", "wrong bytes"),
        [
            [way, r["ms"], r["algbw_gb_per_s"], r["busbw_gb_per_s"], f"{rows[FLAT]['ms'] / r['ms']:.1%}",
             int(r["wrong_bytes"])]
            for way, r in rows.items()
        ],
    )  # fmt: skip
    ours, flat = rows[GROUPED]["busbw_gb_per_s"], rows[FLAT]["busbw_gb_per_s"]
    value = f"{rows[GROUPED]['ms']:.3g} ms, {ours:.3g} GB/s"
    headline = [[f"in one group, {shape.name}, {num_gpus} GPUs", value, f"one flat buffer {flat:.3g} GB/s"]]
    failed = {way: f"{row['wrong_bytes']} bytes did not arrive" for way, row in rows.items() if row["wrong_bytes"]}
    if reference is not None:
        try:
            theirs = nccl_tests.run(reference, found["bytes"], num_gpus, options.rounds, warmup=3)
            found["nccl_tests_busbw_gb_per_s"] = theirs.largest.in_place.busbw_gb_per_s
            headline.append(_beside_nccl_tests(ours, theirs.largest.in_place))
        except ValueError as error:  # our own result is kept
            failed["nccl-tests"] = str(error)
    print(write_results(_name(options), torch.device("cuda"), headline, found))
    if reference is not None and "nccl-tests" not in failed:
        print(": ".join(headline[-1]))
    return exit_code("broadcast", failed)


def _beside_nccl_tests(ours_gb_per_s: float, theirs: nccl_tests.Side) -> list[str]:
    both = f"ours {ours_gb_per_s:.3g} GB/s, nccl-tests in place {theirs.busbw_gb_per_s:.3g} GB/s"
    return ["busbw beside nccl-tests", both, f"ratio {ours_gb_per_s / theirs.busbw_gb_per_s:.3f}"]


def build_program(build_dir: Path) -> Path:
    """Builds bench/nccl and returns the program.

    Raises CannotMeasure if CMake does not find what it needs, RuntimeError if the compiler fails.
    """
    if shutil.which("cmake") is None:
        raise CannotMeasure("cmake was not found")
    site_packages = Path(torch.__file__).parents[1]
    configure = ["cmake", "-S", str(ROOT / "bench" / "nccl"), "-B", str(build_dir), f"-DSITE_PACKAGES={site_packages}"]
    configured = subprocess.run(configure, capture_output=True, text=True, timeout=TIMEOUT_S)
    if configured.returncode:
        raise CannotMeasure(f"{' '.join(configure)} failed: {' '.join(configured.stderr.split())[:500]}")
    built = subprocess.run(["cmake", "--build", str(build_dir)], capture_output=True, text=True, timeout=TIMEOUT_S)
    if built.returncode:
        raise RuntimeError(f"bench/nccl does not compile:\n{(built.stdout + built.stderr)[-4000:]}")
    return build_dir / "broadcast"


def run_program(program: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """Runs the program and returns its JSON, also with wrong bytes. Raises RuntimeError if it fails or is too slow."""
    try:
        done = subprocess.run([str(program), *arguments], capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{program} took longer than {TIMEOUT_S:.0f} s") from None
    lines = done.stdout.strip().splitlines()
    if not lines or not lines[-1].startswith("{"):
        raise RuntimeError(f"{program} failed, exit {done.returncode}: {done.stderr.strip()[-1000:]}")
    return json.loads(lines[-1])


# gloo


def on_cpu(options: argparse.Namespace) -> int:
    """Measures gloo between two processes of one thread each; the limit is one copy of the bytes within the first."""
    shape = QUICKSTART if options.quick else QWEN25_0_5B
    tensors = tensor_list(shape)
    num_bytes = sum(t.num_bytes for t in tensors)
    found = measure_gloo(tensors, options.rounds)
    rows = {way: _cpu_row(f["seconds"], num_bytes, f["wrong_bytes"]) for way, f in found.items()}
    limit = rows[MEMCPY]["gb_per_s"]
    print_table(
        f"{_described(shape, tensors)}, gloo between 2 processes, buckets of {BUCKET_BYTES // 2**20} MiB",
        ("way", "ms", "GB/s", "of memcpy", "spread", "wrong bytes"),
        [
            [way, r["ms"], r["gb_per_s"], f"{r['gb_per_s'] / limit:.1%}", f"{r['spread_frac']:.0%}", r["wrong_bytes"]]
            for way, r in rows.items()
        ],
    )
    bar = f"memcpy {limit:.3g} GB/s, one flat broadcast {rows[FLAT]['gb_per_s']:.3g} GB/s"
    headline = [
        [f"gloo, {way}, {shape.name}", f"{rows[way]['ms']:.3g} ms, {rows[way]['gb_per_s']:.3g} GB/s", bar]
        for way in (ONE_BY_ONE, BUCKETS)
    ]
    results = {"bytes": num_bytes, "num_tensors": len(tensors), "bucket_bytes": BUCKET_BYTES, "ways": rows}
    print(write_results(_name(options), CPU, headline, results))
    return 1 if any(row["wrong_bytes"] for row in rows.values()) else 0


def _cpu_row(seconds: Sequence[float], num_bytes: int, wrong_bytes: int) -> dict[str, Any]:
    median_s = statistics.median(seconds)
    gb_per_s = num_bytes / median_s / 1e9  # of payload: a copy's reads and writes count once
    return {
        "ms": 1e3 * median_s,
        "gb_per_s": gb_per_s,
        "spread_frac": spread_frac(seconds),
        "wrong_bytes": wrong_bytes,
        "rounds": len(seconds),
    }


def measure_gloo(tensors: Sequence[TensorSize], rounds: int) -> dict[str, dict[str, Any]]:
    """``{way: {"seconds": one for each round, "wrong_bytes": found by the receiver}}``, by the first rank's clock."""
    timeout = timedelta(seconds=TIMEOUT_S)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timeout)
    torch.multiprocessing.spawn(_gloo_rank, args=(store.port, list(tensors), rounds), nprocs=2)
    return json.loads(store.get("found"))


def _gloo_rank(rank: int, port: int, tensors: list[TensorSize], rounds: int) -> None:
    timeout = timedelta(seconds=TIMEOUT_S)
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timeout)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timeout)
    weights = [torch.empty(t.num_bytes, dtype=torch.uint8) for t in tensors]
    together = buckets(weights, BUCKET_BYTES)
    staging = torch.empty(max(sum(w.nbytes for w in bucket) for bucket in together), dtype=torch.uint8)
    flat = [torch.empty(sum(t.num_bytes for t in tensors), dtype=torch.uint8)]
    ways: dict[str, tuple[list[Tensor], Callable[[], None]]] = {
        ONE_BY_ONE: (weights, lambda: _broadcast(weights)),
        BUCKETS: (weights, lambda: _broadcast_in_buckets(together, staging, rank)),
        FLAT: (flat, lambda: _broadcast(flat)),
    }
    wrong = {way: _wrong_after(run, buffers, rank) for way, (buffers, run) in ways.items()}
    copy = torch.empty_like(flat[0]) if rank == 0 else None
    works: dict[str, Callable[[], Any]] = {MEMCPY: lambda: None if copy is None else copy.copy_(flat[0])}
    works |= {way: _then_barrier(run) for way, (_, run) in ways.items()}
    # Both ranks must run equally often, so warm-ups have a number and no time limit.
    seconds = interleaved(works, CPU, prepare=dist.barrier, rounds=rounds, warmup_s=0.0, budget_s=math.inf)
    if rank == 0:
        found = {way: {"seconds": s, "wrong_bytes": wrong.get(way, 0)} for way, s in seconds.items()}
        store.set("found", json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def _then_barrier(run: Callable[[], Any]) -> Callable[[], None]:
    def work() -> None:
        run()
        dist.barrier()

    return work


def _broadcast(buffers: Sequence[Tensor]) -> None:
    for buffer in buffers:
        dist.broadcast(buffer, src=0)


def _broadcast_in_buckets(together: Sequence[Sequence[Tensor]], staging: Tensor, rank: int) -> None:
    """Broadcasts buckets, packed on the first rank and unpacked on the other; both are part of the time."""
    for bucket in together:
        packed = staging[: sum(buffer.numel() for buffer in bucket)]
        if rank == 0:
            torch.cat(list(bucket), out=packed)
        dist.broadcast(packed, src=0)
        if rank:
            for buffer, part in zip(bucket, packed.split([b.numel() for b in bucket]), strict=True):
                buffer.copy_(part)


def buckets(buffers: Sequence[Tensor], bucket_bytes: int) -> list[list[Tensor]]:
    """The buffers in full buckets of neighbours; a buffer larger than a bucket has a bucket of its own."""
    starts, filled = [0], 0
    for i, buffer in enumerate(buffers):
        if filled and filled + buffer.nbytes > bucket_bytes:
            starts.append(i)
            filled = 0
        filled += buffer.nbytes
    return [list(buffers[start:end]) for start, end in pairwise([*starts, len(buffers)])]


def _wrong_after(run: Callable[[], None], buffers: Sequence[Tensor], rank: int) -> int:
    """Number of bytes that are wrong at the receiver after a run that begins with zeros; both ranks return it."""
    for i, buffer in enumerate(buffers):
        buffer.copy_(pattern(i, buffer.numel())) if rank == 0 else buffer.zero_()
    run()
    wrong = torch.tensor([wrong_bytes(buffers)])
    dist.all_reduce(wrong)
    return int(wrong)


def wrong_bytes(buffers: Sequence[Tensor]) -> int:
    """Number of bytes that differ from the pattern. Right tensors are only compared: counting needs more memory."""
    expected = ((buffer, pattern(i, buffer.numel())) for i, buffer in enumerate(buffers))
    return sum(int((found != right).sum()) for found, right in expected if not torch.equal(found, right))


def pattern(index: int, num_bytes: int) -> Tensor:
    """The content of tensor number ``index``: random bytes of its own, repeated after a prime number of them."""
    block = torch.randint(256, (65521,), dtype=torch.uint8, generator=torch.Generator().manual_seed(index))
    return block.repeat(-(-num_bytes // len(block)))[:num_bytes]


def _described(shape: Shape, tensors: Sequence[TensorSize]) -> str:
    return f"{shape.name}, {len(tensors)} tensors, {sum(t.num_bytes for t in tensors) / 1e6:,.3g} MB in bf16"


def _name(options: argparse.Namespace) -> str:
    return "broadcast_quick" if options.quick else "broadcast"
