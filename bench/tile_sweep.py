"""Tile shapes of the first matmul: each is timed, and its result compared with that of the default shape.

Before, worker processes compile the shapes and launch each once on a few rows. A shape that does not compile or needs
too much shared memory becomes a row with the reason, and is no failure.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from fastgrpo_kernels.head.exponentials import TiledHead
from fastgrpo_kernels.primitives import RowStats
from torch import Tensor

from bench.chunk_parts import Inputs, add_shape, median_seconds
from bench.harness import Row, exit_code, print_table, write_results
from bench.side_by_side import attempted, few, run_workers, share_of

SHAPES = {"cpu": (20, 24, 130), "cuda": (4096, 1536, 151936)}
DEFAULT = (128, 256, 64, 32, 8, 3)
# rows, vocabulary, width, group, warps, stages, and whether persistent
CANDIDATES = (
    DEFAULT,
    *((128, 256, 64, group, 8, 3) for group in (4, 8, 16)),
    *((128, 256, 64, group, 8, 4) for group in (8, 16, 32)),
    (128, 256, 64, 8, 8, 2),
    (128, 256, 64, 8, 16, 3),
    (128, 256, 32, 8, 8, 4),
    (128, 256, 32, 8, 8, 6),
    (128, 256, 128, 8, 8, 2),
    (128, 128, 64, 8, 4, 3),
    (128, 128, 64, 16, 4, 4),
    (128, 128, 64, 8, 8, 3),
    (128, 128, 64, 16, 8, 4),
    (128, 128, 64, 32, 8, 5),
    (128, 128, 128, 16, 8, 3),
    (64, 256, 64, 16, 4, 3),
    (64, 256, 64, 16, 8, 2),  # two blocks fit on a multiprocessor of sm_90: an epilogue beside the other's matmul
    (64, 256, 64, 32, 8, 4),
    (256, 128, 64, 4, 8, 3),
    (256, 128, 64, 8, 8, 4),
    (64, 128, 64, 32, 4, 3),
    *((128, 256, 64, group, 8, stages, True) for group in (8, 32) for stages in (3, 4)),
    *((128, 128, 64, 32, warps, 4, True) for warps in (4, 8)),
)
INTERPRETED = ((16, 64, 16, 2, 4, 1), (16, 32, 16, 4, 4, 1), (32, 64, 32, 2, 4, 1, True))
VALUE_BOUND, GRADIENT_BOUND = 1e-3, 1e-2
"""Bounds on the difference from the default shape: in nats, and relative to the norm of the gradient, whose elements
are rounded twice."""
_ROW = "compiled: "
_BROKEN = "CUDA error"
"""After such an error nothing runs in this process any more."""


class Result(NamedTuple):
    logprobs: Tensor  # [R]
    lse: Tensor  # [R]
    grad_logits: Tensor  # [R, V]


def main(argv: Sequence[str]) -> int:
    """Measures. Returns 1 if the default shape could not be measured, and so no shape, or if a result is wrong."""
    options = _options(argv)
    device = torch.device(options.device)
    if device.type == "cpu":
        os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports the kernels
    shapes = INTERPRETED if device.type == "cpu" else CANDIDATES
    if options.compile:
        share, shares = options.compile
        for shape in shapes[share::shares]:
            row = compiled(shape, options.shape, device)
            print(_ROW + json.dumps(row), flush=True)
            if _BROKEN in row["why_not"]:
                break
        return 0
    deadline = time.monotonic() + options.budget_s
    ahead = _compiled_ahead(shapes, options) if options.processes > 1 else {}
    rows = _swept(shapes, ahead, options.shape, device, deadline)
    _print(rows, options.shape)
    default = rows[0]
    failed = {row["name"]: row["why_not"] for row in rows if row["verdict"] == "WRONG" or row is default}
    return exit_code("tile_sweep", {name: why for name, why in failed.items() if why})


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench tile_sweep", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    add_shape(parser, "R,D,V", SHAPES)
    parser.add_argument("--processes", type=int, default=1, help="how many compile ahead")
    parser.add_argument("--budget_s", type=float, default=180.0, help="no shape is begun after it")
    parser.add_argument("--compile", type=share_of, metavar="I/N", help="compile every Nth shape, from the Ith on")
    options = parser.parse_args(argv)
    options.shape = options.shape or SHAPES[options.device]
    return options


def name_of(shape: Sequence[int]) -> str:
    rows, vocabulary, width, group, warps, stages, *persistent = shape
    name = f"{rows} x {vocabulary} x {width}, group {group}, {warps} warps, {stages} stages"
    return name + (", persistent" if persistent else "")


# Compiling.


def compiled(shape: Sequence[int], of: Sequence[int], device: torch.device) -> Row:
    """A row: the seconds to compile and to launch on few rows and columns, and why it failed or ""."""
    started = time.monotonic()

    def work() -> None:
        result = run(shape, _inputs(few(of), device))
        assert bool(torch.isfinite(result.logprobs).all()), "its logprobs are not finite"

    _, why_not = attempted(work, device)
    return {"name": name_of(shape), "seconds": time.monotonic() - started, "why_not": why_not}


def _compiled_ahead(shapes: Sequence[Sequence[int]], options: argparse.Namespace) -> dict[str, str]:
    """Name -> why its compilation failed or "". Shapes that no process reached in half of the time are left out."""
    count = min(options.processes, len(shapes))
    of = ",".join(map(str, options.shape))
    commands = [
        ["tile_sweep", "--device", options.device, "--shape", of, "--compile", f"{i}/{count}"] for i in range(count)
    ]
    found: dict[str, str] = {}
    for share, (lines, why_not) in enumerate(run_workers(commands, options.budget_s / 2)):
        rows = [json.loads(line.removeprefix(_ROW)) for line in lines if line.startswith(_ROW)]
        found |= {row["name"]: row["why_not"] for row in rows}
        unreached = shapes[share::count][len(rows) :]
        if why_not and unreached:  # the first of them is the shape at which the process ended
            found[name_of(unreached[0])] = f"compiling it ended its process: {why_not}"
    return found


# Running.


def _inputs(of: Sequence[int], device: torch.device) -> Inputs:
    num_rows, width, vocabulary = of
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32  # the interpreter's 16-bit products are wrong
    return Inputs.random(num_rows, width, vocabulary, dtype, device)


def head_of(shape: Sequence[int], inputs: Inputs) -> TiledHead:
    from fastgrpo_kernels.gpu.tiles import TileShape

    return TiledHead(inputs.of_head(len(inputs.hidden)), True, TileShape(*shape))


def first_matmul(head: TiledHead) -> RowStats:
    """The matmul, its exponentials stored, and the statistics of its rows."""
    return head.forward(slice(0, len(head.hidden)), entropy=False)


def run(shape: Sequence[int], inputs: Inputs) -> Result:
    head = head_of(shape, inputs)
    stats = first_matmul(head)
    gradient = head.gradient(slice(0, len(head.hidden)), stats, inputs.grad_logprobs, None)
    return Result(stats.logprobs, stats.lse, gradient.whole())


def _swept(
    shapes: Sequence[Sequence[int]], ahead: dict[str, str], of: Sequence[int], device: torch.device, deadline: float
) -> list[Row]:
    """A row for each shape, the default first: measured, WRONG, cannot run, or not reached."""
    inputs, why_not = attempted(lambda: _inputs(of, device), device)
    limit, _ = attempted(lambda: median_seconds(_bare(inputs), device), device) if inputs else (None, "")
    rows: list[Row] = []
    default: Result | None = None
    over = ""
    for shape in shapes:
        row: Row = {"name": name_of(shape), "shape": list(shape), "verdict": "cannot run", "limit_seconds": limit}
        row["why_not"] = why_not or ahead.get(row["name"], "")
        if rows and time.monotonic() > deadline:
            over = over or "the time was over"
        if over:
            row |= {"verdict": "not reached", "why_not": over}
        elif not row["why_not"]:
            found, row["why_not"] = attempted(partial(run, shape, inputs), device)
            default = found if not rows else default
            row |= _measured(shape, inputs, found, default, device) if found is not None else {}
            over = f"{row['name']} broke the device" if _BROKEN in row["why_not"] else ""
            del found  # a buffer of logits
        rows.append(row)
        print(_line(row), flush=True)
        _write(rows, of, device)
    return rows


def _bare(inputs: Inputs) -> Callable[[], Any]:
    """torch's matmul of the same shape, into 16 bits."""
    out = inputs.hidden.new_empty(len(inputs.hidden), len(inputs.weight))
    return lambda: torch.mm(inputs.hidden, inputs.weight.T, out=out)


def _measured(shape: Sequence[int], inputs: Inputs, found: Result, default: Result | None, device: torch.device) -> Row:
    """The times, and whether the result is right; without the default shape's result there is no comparison."""

    def work() -> Row:
        head = head_of(shape, inputs)
        return {"seconds": median_seconds(lambda: first_matmul(head), device)}

    off, why_not = attempted(lambda: "" if default is None else _difference(found, default), device)
    if off or why_not:
        return {"verdict": "WRONG", "why_not": off or why_not}
    times, why_not = attempted(work, device)
    return {"verdict": "cannot run" if why_not else "measured", "why_not": why_not, **(times or {})}


def _difference(found: Result, default: Result) -> str:
    """How the result differs from that of the default shape, or ""."""
    for name in ("logprobs", "lse"):
        off = float((getattr(found, name) - getattr(default, name)).abs().max())
        if not off <= VALUE_BOUND:
            return f"{name} are off from the default shape's by {off:.2e} nats, at most {VALUE_BOUND:.0e}"
    squares = torch.zeros(2, dtype=torch.float64)
    for got, right in zip(found.grad_logits.split(512), default.grad_logits.split(512), strict=True):
        wide = right.float()
        squares += torch.stack([(got.float() - wide).square().sum().double(), wide.square().sum().double()]).cpu()
    off = float((squares[0] / squares[1]).sqrt())
    if not off <= GRADIENT_BOUND:
        return f"its gradient is off from the default shape's by {off:.2e} of its norm, at most {GRADIENT_BOUND:.0e}"
    return ""


# Report.


def _line(row: Row) -> str:
    return f"{row['verdict']:<11} {row['name']}" + (f": {row['why_not']}" if row["why_not"] else "")


def _best(rows: list[Row]) -> Row | None:
    measured = [row for row in rows if row["verdict"] == "measured"]
    return min(measured, key=lambda row: row["seconds"], default=None)


def _headline(rows: list[Row]) -> list[list[str]]:
    best, default = _best(rows), rows[0]
    if best is None:
        return [["best tile shape", "none ran", "-"]]
    of_default = f"default {1e3 * default['seconds']:.2f} ms" if default["verdict"] == "measured" else "no default"
    of_default += f", torch.mm alone {1e3 * best['limit_seconds']:.2f} ms" if best["limit_seconds"] else ""
    return [[f"best tile shape: {best['name']}", f"{1e3 * best['seconds']:.2f} ms a chunk", of_default]]


def _write(rows: list[Row], of: Sequence[int], device: torch.device) -> None:
    write_results("tile_sweep", device, _headline(rows), {"shape": list(of), "rows": rows})


def _print(rows: list[Row], of: Sequence[int]) -> None:
    num_rows, width, vocabulary = of
    flops = 2 * num_rows * width * vocabulary
    measured = sorted((row for row in rows if row["verdict"] == "measured"), key=lambda row: row["seconds"])
    table = [[row["name"], 1e3 * row["seconds"], flops / row["seconds"] / 1e12] for row in measured]
    columns = ("tile", "first matmul ms", "TFLOP/s")
    print_table(f"R {num_rows:,}, D {width:,}, V {vocabulary:,}", columns, table)
    for row in rows:
        if row["verdict"] != "measured":
            print(_line(row))
    for what, value, other in _headline(rows):
        print(f"{what}: {value}, {other}")
