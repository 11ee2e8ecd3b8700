"""What the LM head should take on a GPU by bytes, FLOPs, instructions and waves, part by part: predicted, not measured.

The limit is three matmuls in bfloat16 by the same rules. A matmul takes whole waves of the best of cuBLAS's tiles, or
the time of its bytes if that is longer. Our tiles add their epilogue, whose instructions are those that
`python -m bench compiled_kernels` counts, and, unless they are persistent, the store of a tile and the latency of its
first loads, which nothing hides.
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bench.harness import RESULTS, print_table

SHAPE = (16384, 1536, 151936)
WIDTHS = (896, 1536, 2048, 2560, 3584, 4096, 5120)  # of Qwen2.5's, Qwen3's and Llama's models, 0.5B to 32B
CHUNKS = (1024, 2048, 2816, 3328, 4096, 6144, 8192)
CUBLAS_TILES = ((128, 256), (256, 128), (128, 192), (128, 128))
TILE, THREADS, LANES = (128, 256), 256, 128  # our tile, its threads, and lanes that an SM issues for in a cycle
FILL_S, LAUNCH_S = 1.5e-6, 3e-6  # the first loads of a tile; a small kernel
LAUNCHES = 30  # small kernels beside the matmuls, a chunk


@dataclass(frozen=True)
class Device:
    """``flops_per_s`` and ``bytes_per_s`` as large matmuls and copies reach them; the rest from the data sheets."""

    name: str
    sm: int
    multiprocessors: int
    hertz: float
    flops_per_s: float
    bytes_per_s: float
    chunk_tokens: int


# Four fifths of the data sheets' 989 and 312 TFLOP/s and nine tenths of 3.35, 4.8 and 2.04 TB/s.
DEVICES = (
    Device("H100", 90, 132, 1.755e9, 798e12, 3.0e12, 4096),
    Device("H200", 90, 132, 1.755e9, 798e12, 4.3e12, 4096),
    Device("A800", 80, 108, 1.41e9, 256e12, 1.84e12, 2048),
)


def matmul_s(device: Device, rows: int, columns: int, inner: int, out_bytes: float) -> float:
    """Seconds of [rows, inner] times [inner, columns] in bfloat16, with ``out_bytes`` an element of the result."""
    of_a_tile = [
        math.ceil(math.ceil(rows / r) * math.ceil(columns / c) / device.multiprocessors)
        * (2 * r * c * inner / (device.flops_per_s / device.multiprocessors))
        for r, c in CUBLAS_TILES
    ]
    moved = 2 * inner * (rows + columns) + out_bytes * rows * columns
    return max(min(of_a_tile), moved / device.bytes_per_s)


def tiles_s(device: Device, rows: int, columns: int, inner: int, epilogue: int, persistent: bool) -> float:
    """Seconds of our first matmul, which stores 2 bytes an element."""
    tiles = math.ceil(rows / TILE[0]) * math.ceil(columns / TILE[1])
    each = device.multiprocessors
    main = 2 * TILE[0] * TILE[1] * inner / (device.flops_per_s / each)
    store = 2 * TILE[0] * TILE[1] / (device.bytes_per_s / each)
    finish = epilogue * THREADS / LANES / device.hertz
    hidden = max(main, store) if persistent else main + store + FILL_S
    return math.ceil(tiles / each) * (hidden + finish)


def parts(device: Device, shape: Sequence[int], way: str, epilogue: int) -> dict[str, float]:
    """Name -> seconds in a micro-batch, for "tiles", "persistent tiles" or "cuBLAS logits"."""
    tokens, width, vocabulary = shape
    chunks = math.ceil(tokens / device.chunk_tokens)
    rows = math.ceil(tokens / chunks / 16) * 16
    logits, of_weight = tokens * vocabulary, width * vocabulary
    if way == "cuBLAS logits":
        first = chunks * matmul_s(device, rows, vocabulary, width, 4)
        passes = logits * (4 + 2) / device.bytes_per_s
    else:
        first, passes = chunks * tiles_s(device, rows, vocabulary, width, epilogue, way.startswith("persistent")), 0.0
    return {
        "first matmul": first,
        "pass over logits": passes,
        "dX": chunks * matmul_s(device, rows, width, vocabulary, 2),
        "dW": sum(matmul_s(device, vocabulary, width, rows, 8 if i else 4) for i in range(chunks)),
        "factors on X and dX": 8 * tokens * width / device.bytes_per_s,
        "small kernels": chunks * LAUNCHES * LAUNCH_S,
        "dW to 16 bits, times the loss's gradient": (6 + 4) * of_weight / device.bytes_per_s,
    }


def limit_s(device: Device, shape: Sequence[int]) -> float:
    """Seconds of the three bare matmuls."""
    tokens, width, vocabulary = shape
    sizes = ((tokens, vocabulary, width), (tokens, width, vocabulary), (vocabulary, width, tokens))
    return sum(matmul_s(device, *size, 2) for size in sizes)


def counted_epilogues() -> dict[int, int]:
    """Compute capability -> instructions of the epilogue of `_linear_tiles`, as they were counted last."""
    path = RESULTS / "cpu-2-cores" / "compiled_kernels.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["results"]
    wanted = ("_linear_tiles", "EVEN_WIDTH, stored")
    return {row["sm"]: row["epilogue_instructions"] for row in rows if (row["kernel"], row["variant"]) == wanted}


def main(argv: Sequence[str]) -> int:
    """Prints the predictions."""
    argparse.ArgumentParser(prog="bench head_model", description=(__doc__ or "").split("\n")[0]).parse_args(argv)
    epilogues, table = counted_epilogues(), []
    for device in DEVICES:
        limit = limit_s(device, SHAPE)
        for way in ("tiles", "persistent tiles", "cuBLAS logits"):
            if way.startswith("persistent") and device.sm < 90:
                continue
            found = parts(device, SHAPE, way, epilogues[device.sm])
            total = sum(found.values())
            table.append([device.name, way, *(1e3 * s for s in found.values()), 1e3 * total, total / limit])
    columns = ("device", "first matmul by", *(f"{name}, ms" for name in found), "all, ms", "x three matmuls")
    print_table("predicted: T {:,}, D {:,}, V {:,}".format(*SHAPE), columns, table)
    print_table(
        "x three matmuls by the rows of a chunk, as each device chooses the first matmul",
        ("device", "multiprocessors", "width", *(f"{n:,}" for n in CHUNKS)),
        [
            [device.name, device.multiprocessors, width, *of_chunks(device, width, epilogues[device.sm])]
            for device in DEVICES
            for width in WIDTHS
        ],
    )
    return 0


def of_chunks(device: Device, width: int, epilogue: int) -> list[float]:
    """The time over three matmuls with chunks of each size: what whole waves of dX and few passes over dW are worth."""
    shape = (SHAPE[0], width, SHAPE[2])
    way = "tiles" if device.sm >= 90 else "cuBLAS logits"
    limit = limit_s(device, shape)
    return [sum(parts(replace(device, chunk_tokens=n), shape, way, epilogue).values()) / limit for n in CHUNKS]
