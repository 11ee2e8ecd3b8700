"""The parts of one chunk of the LM head, timed one by one, each beside its own limit.

The limit of a matmul is torch's matmul of that shape into 16 bits; the limit of a pass over memory is its bytes at the
bandwidth of a large copy. On CUDA a run is timed by events, after a write that empties the cache and gives the host
time to launch. On a CPU it is timed by wall clock, and there are no tiles.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fastgrpo_kernels.head import LinearInputs
from fastgrpo_kernels.head.exponentials import ExponentialHead, TiledHead
from fastgrpo_kernels.head.gradients import scale
from fastgrpo_kernels.head.matmuls import add_product, multiply
from fastgrpo_kernels.primitives import LogitTransform
from torch import Tensor

from bench.harness import SHORTEST_S, Row, exit_code, free_cached, print_table, timed, write_results
from bench.side_by_side import attempted

SHAPES = {"cpu": (256, 64, 4104), "cuda": (16384, 1536, 151936)}
COPIED_BYTES = {"cpu": 2**26, "cuda": 2**31}
SPACER_BYTES = 2**30
"""Bytes written before each run: more than any cache holds, and a third of a millisecond for the host to launch."""


@dataclass(frozen=True)
class Part:
    """A part of the step. ``times``: how often it runs in a micro-batch; 0 if it is only shown beside the step."""

    name: str
    work: Callable[[], Any]
    times: int
    limit: Callable[[], Any] | int  # a matmul, or bytes read and written
    prepare: Callable[[], Any] = lambda: None
    """Makes the part's inputs, once: a pass that ran in place may have left zeros, whose matmul would be faster."""


@dataclass(frozen=True)
class Inputs:
    hidden: Tensor  # [T, D]
    weight: Tensor  # [V, D]
    target_ids: Tensor  # [T] int64
    grad_logprobs: Tensor  # [T]

    @classmethod
    def random(cls, num_tokens: int, width: int, vocabulary: int, dtype: torch.dtype, device: torch.device) -> "Inputs":
        generator = torch.Generator(device).manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, device=device, generator=generator)

        return cls(
            normal(num_tokens, width).to(dtype), (normal(vocabulary, width) * 2 * width**-0.5).to(dtype),
            torch.randint(vocabulary, (num_tokens,), device=device, generator=generator),
            normal(num_tokens) / num_tokens,
        )  # fmt: skip

    def of_head(self, chunk_tokens: int) -> LinearInputs:
        return LinearInputs(self.hidden, self.weight, None, self.target_ids, LogitTransform(), chunk_tokens)


def main(argv: Sequence[str]) -> int:
    """Measures. Returns 1 if a part could not be timed."""
    options = _options(argv)
    device = torch.device(options.device)
    inputs = Inputs.random(*options.shape, torch.bfloat16 if device.type == "cuda" else torch.float32, device)
    copy_s = _copy_seconds_per_byte(device)
    rows: list[Row] = []
    for way, parts_of in (("tiles", tile_parts), ("logits", logit_parts)):
        if way == "tiles" and device.type == "cpu":
            continue
        parts, why_not = attempted(lambda parts_of=parts_of: list(parts_of(inputs, options.chunk_tokens)), device)
        if parts is None:
            rows.append({"name": f"{way}: all parts", "way": way, "times": 0, "why_not": why_not})
        for part in parts or []:
            rows.append({"name": f"{way}: {part.name}", "way": way, **measured(part, device, copy_s)})
            _write(rows, options.shape, device)
        part = parts = None
        free_cached(device)
    _print(rows, options.shape)
    print(_write(rows, options.shape, device))
    return exit_code("chunk_parts", {row["name"]: row["why_not"] for row in rows if row["why_not"]})


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench chunk_parts", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    add_shape(parser, "T,D,V", SHAPES)
    parser.add_argument("--chunk_tokens", type=int, default=0, help="rows of a chunk; default: what the ops take")
    options = parser.parse_args(argv)
    options.shape = options.shape or SHAPES[options.device]
    return options


def add_shape(parser: argparse.ArgumentParser, dimensions: str, shapes: dict[str, tuple[int, int, int]]) -> None:
    """Adds ``--shape``, three whole numbers above 0; None takes the device's default."""

    def shape(text: str) -> tuple[int, ...]:
        parts = text.split(",")
        if len(parts) != 3 or not all(part.isdigit() and int(part) > 0 for part in parts):
            raise argparse.ArgumentTypeError(f"need {dimensions}, three whole numbers above 0, got {text!r}")
        return tuple(map(int, parts))

    defaults = ", ".join(f"{','.join(map(str, s))} ({name})" for name, s in shapes.items())
    parser.add_argument("--shape", type=shape, help=f"{dimensions}; default: {defaults}")


# The parts.


def tile_parts(inputs: Inputs, chunk_tokens: int) -> Iterator[Part]:
    """The parts of a chunk whose first matmul also makes the exponentials."""
    of_head = inputs.of_head(chunk_tokens)
    bare, unkept = _bare_logits(inputs, chunk_tokens, TiledHead), TiledHead(of_head, keep=False)
    rows = next(TiledHead(of_head, keep=True).chunks())
    yield Part("first matmul, nothing stored", lambda: unkept.forward(rows, entropy=False), 0, bare)
    yield from _parts(TiledHead(of_head, keep=True), inputs, bare)


def logit_parts(inputs: Inputs, chunk_tokens: int) -> Iterator[Part]:
    """The parts of a chunk of float32 logits: cuBLAS on a GPU, MKL on a CPU."""
    head = ExponentialHead(inputs.of_head(chunk_tokens), keep=True)
    yield from _parts(head, inputs, _bare_logits(inputs, chunk_tokens, ExponentialHead))


def _parts(head: ExponentialHead, inputs: Inputs, bare: Callable[[], Any]) -> Iterator[Part]:
    """The parts from the hidden states of a chunk to the gradients of hidden and weight."""
    rows, count = next(head.chunks()), len(list(head.chunks()))
    hidden, weight, upstream = inputs.hidden[rows], inputs.weight, inputs.grad_logprobs[rows]
    stats = head.forward(rows, entropy=False)

    def first() -> None:
        head.forward(rows, entropy=False)

    def gradient() -> Any:
        return head.gradient(rows, stats, upstream, None)

    yield Part("first matmul, exponentials stored", first, count, bare)
    yield Part("one number in each row", gradient, count, 64 * len(hidden), first)
    values, factors = gradient()
    wide = torch.float32
    of_hidden, scaled, total = torch.empty_like(hidden), torch.empty_like(hidden), torch.zeros_like(weight, dtype=wide)
    contiguous = torch.randn(values.shape, dtype=hidden.dtype, device=hidden.device)
    narrow = torch.empty_like(weight)

    def prepare() -> None:
        first()
        gradient()

    yield Part("dX", lambda: torch.mm(values, weight, out=of_hidden), count,
               lambda: torch.mm(contiguous, weight, out=of_hidden), prepare)  # fmt: skip
    yield Part("factors on dX", lambda: scale(of_hidden, factors, of_hidden), count, _bytes(hidden, hidden))
    yield Part("factors on X", lambda: scale(hidden, factors, scaled), count, _bytes(hidden, hidden))

    def bare_of_weight() -> None:
        torch.mm(contiguous.T, hidden, out=narrow)

    yield Part("dW, first chunk", lambda: multiply(values.T, scaled, total), 1, bare_of_weight, prepare)
    yield Part("dW, added to", lambda: add_product(values.T, scaled, total), count - 1, bare_of_weight, prepare)
    if weight.dtype != wide:
        yield Part("dW to 16 bits", lambda: total.to(weight.dtype), 1, _bytes(total, narrow))
    one = torch.ones((), device=weight.device)
    yield Part("dW times the loss's gradient", lambda: narrow.mul_(one), 1, _bytes(narrow, narrow))


def _bare_logits(inputs: Inputs, chunk_tokens: int, head: type[ExponentialHead]) -> Callable[[], Any]:
    rows = next(head(inputs.of_head(chunk_tokens), keep=True).chunks())
    hidden, weight = inputs.hidden[rows], inputs.weight
    out = hidden.new_empty(len(hidden), len(weight))
    return lambda: torch.mm(hidden, weight.T, out=out)


def _bytes(*tensors: Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


# Time.


def measured(part: Part, device: torch.device, copy_seconds_per_byte: float) -> Row:
    row: Row = {"times": part.times, "why_not": ""}

    def work() -> Row:
        part.prepare()
        seconds = median_seconds(part.work, device)
        if isinstance(part.limit, int):
            kind, limit = "a copy of its bytes", max(part.limit * copy_seconds_per_byte, SHORTEST_S)
        else:
            kind, limit = "torch.mm", median_seconds(part.limit, device)
        return {"seconds": seconds, "limit": kind, "limit_seconds": limit, "ratio": seconds / limit}

    found, row["why_not"] = attempted(work, device)
    return row | (found or {})


def median_seconds(work: Callable[[], Any], device: torch.device, repeats: int = 10) -> float:
    """The median time of single runs with a cold cache, by the device's own clock; never 0, since it is a divisor."""
    if device.type == "cpu":
        return timed(work, device, warmup_s=0.0, repeats=5, budget_s=1.0).median_s
    for _ in range(3):
        work()
    spacer = torch.empty(SPACER_BYTES, dtype=torch.uint8, device=device)
    clocks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for start, end in clocks:
        spacer.zero_()
        start.record()
        work()
        end.record()
    torch.cuda.synchronize(device)
    return max(statistics.median(start.elapsed_time(end) for start, end in clocks) / 1e3, SHORTEST_S)


def _copy_seconds_per_byte(device: torch.device) -> float:
    """Seconds for each byte of a large copy, where bytes read and bytes written both count."""
    size = COPIED_BYTES[device.type] // 2
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return median_seconds(lambda: target.copy_(source), device) / (2 * size)


# Report.


def _in_a_step(rows: list[Row], way: str, key: str) -> float | None:
    """The seconds of a whole micro-batch; None unless every part was timed."""
    own = [row for row in rows if row["way"] == way]
    if any(row["why_not"] for row in own):
        return None
    return sum(row["times"] * row[key] for row in own)


def _headline(rows: list[Row]) -> list[list[Any]]:
    lines = []
    for way in dict.fromkeys(row["way"] for row in rows):
        seconds, limit = (_in_a_step(rows, way, key) for key in ("seconds", "limit_seconds"))
        value, other = ("a part failed" if s is None else f"{1e3 * s:.2f} ms" for s in (seconds, limit))
        lines.append([f"parts of the head by {way}, added up", value, other])
    return lines


def _write(rows: list[Row], shape: Sequence[int], device: torch.device) -> Path:
    return write_results("chunk_parts", device, _headline(rows), {"shape": list(shape), "rows": rows})


def _print(rows: list[Row], shape: Sequence[int]) -> None:
    columns = ("part", "ms", "limit ms", "x limit", "limit", "times a micro-batch", "ms a micro-batch")
    table = []
    for row in rows:
        if not row["why_not"]:
            times = [1e3 * row[key] for key in ("seconds", "limit_seconds")]
            table.append([row["name"], *times, row["ratio"], row["limit"], row["times"], times[0] * row["times"]])
    print_table("micro-batch: T {:,}, D {:,}, V {:,}".format(*shape), columns, table)
    for what, value, limit in _headline(rows):
        print(f"{what}: {value}, limits {limit}")
