"""Packed attention at 16,384 tokens: flash-attn, torch's varlen, sdpa with a mask: errors, time, memory."""

import argparse
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.harness import (
    GIB,
    PeakMemory,
    Row,
    add_only,
    chosen,
    exit_code,
    free_cached,
    merged,
    print_table,
    read_results,
    reason,
    show_traceback,
    synchronize,
    timed,
    write_results,
)
from bench.limits import Peak, measured_peak
from bench.shapes import QWEN25_1_5B

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]  # q [1, H, T, E], k and v [1, K, T, E] -> [1, T, H, E]
FLOOR = 1e-6
SDPA = "sdpa"
IMPLEMENTATIONS = ("padded", SDPA, "varlen", "flash_attn")


def main(argv: Sequence[str]) -> int:
    """Measures. Returns 1 if an implementation fails, or its error is more than twice that of plain torch in its dtype.

    It is no failure if an implementation is not installed or needs CUDA, or if transformers' one does not fit a GPU.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    wanted = chosen(parser, options.only, IMPLEMENTATIONS)
    device = torch.device(options.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    layout = Layout(options.tokens or (16384 if device.type == "cuda" else 1024), device)
    rows = _kept(layout, parser) if options.only else []
    peak = measured_peak(device, dtype)
    inputs = layout.inputs(dtype)
    oracle = _values_and_gradients(layout.by_definition, tuple(t.double() for t in inputs), layout.upstream.double())
    plain = _errors(_values_and_gradients(layout.by_definition, inputs, layout.upstream.to(dtype)), oracle)
    for name in wanted:
        free_cached(device)
        rows = merged(rows, [_row(name, layout, inputs, oracle, plain)], IMPLEMENTATIONS)
        _write(rows, plain, peak, layout)  # after each row, so that a later failure loses nothing
    _report(rows, plain, peak, layout)
    print(_write(rows, plain, peak, layout))
    return exit_code(
        "attention", {row["name"]: why for row in rows if row["name"] in wanted and (why := _failure(row))}
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench attention", description=__doc__)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--tokens", type=int, help="default: 16384 on CUDA, 1024 on CPU")
    add_only(parser)
    return parser


def _kept(layout: "Layout", parser: argparse.ArgumentParser) -> list[Row]:
    """The rows that are there already. Ends the program with 2 if they cannot be compared with new ones."""
    found = read_results("attention", layout.device)
    if found and found["lengths"] != layout.lengths:
        parser.error(
            f"--only keeps the other rows, which are of {sum(found['lengths'])} tokens and not of {layout.num_tokens}: "
            f"give the same --tokens, or measure all rows anew"
        )
    return found.get("implementations", [])


class Layout:
    """A packed row of mixed lengths with Qwen2.5-1.5B's heads, and every implementation of attention in it."""

    def __init__(self, num_tokens: int, device: torch.device) -> None:
        from bench.synthetic import response_mix
        from fastgrpo.models.layout import PackedLayout

        self.device = device
        self.lengths = response_mix(num_tokens)
        self.num_tokens = num_tokens
        bounds = torch.tensor([0, *self.lengths]).cumsum(0)
        self.cu_seqlens = bounds.int().to(device)
        self.bounds = bounds.tolist()
        generator = torch.Generator(device).manual_seed(0)
        shape = (1, num_tokens, QWEN25_1_5B.num_heads, QWEN25_1_5B.head_width)
        self.upstream = torch.randn(shape, device=device, generator=generator)  # gradient of the output
        self._generator = generator
        self.scaling = QWEN25_1_5B.head_width**-0.5
        self.packed = PackedLayout(self.cu_seqlens, max(self.lengths))

    def inputs(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        s, t = QWEN25_1_5B, self.num_tokens
        return tuple(
            torch.randn(1, heads, t, s.head_width, device=self.device, generator=self._generator).to(dtype)
            for heads in (s.num_heads, s.num_kv_heads, s.num_kv_heads)
        )

    def by_definition(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """softmax(q k^T) v, one sequence and one key/value head at a time, all in the inputs' dtype."""
        repeats = q.shape[1] // k.shape[1]
        sequences = []
        for start, end in zip(self.bounds, self.bounds[1:], strict=False):
            future = torch.ones(end - start, end - start, dtype=torch.bool, device=q.device).triu(1)
            heads = []
            for h in range(q.shape[1]):
                scores = q[0, h, start:end] @ k[0, h // repeats, start:end].T * self.scaling
                heads.append(scores.masked_fill_(future, -torch.inf).softmax(-1) @ v[0, h // repeats, start:end])
            sequences.append(torch.stack(heads, dim=1))
        return torch.cat(sequences)[None]

    def why_not(self, name: str) -> str:
        """Why an implementation cannot run here; empty if it can."""
        if name in ("padded", SDPA):
            return ""
        if self.device.type != "cuda":
            return "needs CUDA"
        return "not installed" if find_spec("flash_attn") is None and name == "flash_attn" else ""

    def implementation(self, name: str) -> Attention:
        from fastgrpo.models.attention import flash_attention, padded_attention, varlen_attention

        if name == SDPA:
            return self.masked_sdpa
        of_ours: dict[str, Callable[..., Any]] = {
            "padded": padded_attention,
            "varlen": varlen_attention,
            "flash_attn": flash_attention,
        }
        attention = of_ours[name]
        return lambda q, k, v: attention(None, q, k, v, None, layout=self.packed, scaling=self.scaling)[0]

    def masked_sdpa(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """transformers' ``sdpa`` on packed rows: with a block-diagonal causal mask of all token pairs."""
        lengths = torch.tensor(self.lengths, device=self.device)
        numbers = torch.arange(len(lengths), device=self.device)
        sequence = numbers.repeat_interleave(lengths, output_size=self.num_tokens)
        place = torch.arange(self.num_tokens, device=self.device)
        mask = (sequence[:, None] == sequence) & (place[:, None] >= place)
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scaling).transpose(1, 2)

    def forward_flops(self) -> float:
        """FLOPs of half of the token pairs in both products; forward and backward together take 3.5 times as many."""
        return 2.0 * QWEN25_1_5B.query_width * sum(n * n for n in self.lengths)


NAMES = ("output", "grad_q", "grad_k", "grad_v")


def _values_and_gradients(attention: Attention, inputs: Sequence[Tensor], upstream: Tensor) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in inputs]
    output = attention(*leaves)
    output.backward(upstream.to(output.dtype))
    return [output.detach(), *(t.grad for t in leaves if t.grad is not None)]


def _errors(values: Sequence[Tensor], oracle: Sequence[Tensor]) -> dict[str, float]:
    """The root mean square of each difference, divided by that of the oracle."""
    pairs = zip(NAMES, values, oracle, strict=True)
    return {name: float((v.double() - o).norm() / o.norm()) for name, v, o in pairs}


def _row(
    name: str,
    layout: Layout,
    inputs: Sequence[Tensor],
    oracle: Sequence[Tensor],
    plain: dict[str, float],
) -> Row:
    """The figures of an implementation, or the reason why there are none."""
    if why := layout.why_not(name):
        return {"name": name, "why_not": why}
    try:
        return {"name": name, **_figures(layout.implementation(name), layout, inputs, oracle, plain)}
    except torch.OutOfMemoryError as error:
        return {"name": name, "oom": reason(error)}
    except Exception as error:  # a broken kernel must not hide the others
        show_traceback(error)
        return {"name": name, "error": reason(error)}


def _figures(
    run: Attention, layout: Layout, inputs: Sequence[Tensor], oracle: Sequence[Tensor], plain: dict[str, float]
) -> Row:
    upstream = layout.upstream.to(inputs[0].dtype)
    errors = _errors(_values_and_gradients(run, inputs, upstream), oracle)
    with PeakMemory(layout.device) as peak:
        _values_and_gradients(run, inputs, upstream)
        synchronize(layout.device)
    time = timed(lambda: _values_and_gradients(run, inputs, upstream), layout.device, budget_s=4.0)
    return {
        "errors": errors,
        "within": all(errors[n] <= 2 * plain[n] + FLOOR for n in NAMES),
        "forward_backward_s": time.median_s,
        "spread_frac": time.spread_frac,
        "peak_gib": peak.bytes / GIB if layout.device.type == "cuda" else None,  # a CPU process keeps what it freed
    }


def _failure(row: Row) -> str:
    """The reason for exit code 1, or ""."""
    fits_not = row["name"] == SDPA and "oom" in row
    if "why_not" in row or fits_not:
        return ""
    return _why_no_figures(row) or ("" if row["within"] else "it errs more than twice as much as plain torch")


def _why_no_figures(row: Row) -> str:
    return next((row[key] for key in ("why_not", "oom", "error") if key in row), "")


def _limit_s(peak: Peak, layout: Layout) -> float:
    return 3.5 * layout.forward_flops() / peak.flops_per_s


def _report(rows: Sequence[Row], plain: dict[str, float], peak: Peak, layout: Layout) -> None:
    limit_s = _limit_s(peak, layout)
    columns = ("implementation", *NAMES, "within 2x", "forward + backward s", "at peak FLOP/s s", "of it", "GiB")
    lines = [["plain torch, " + peak.dtype, *plain.values(), None, None, None, None, None]]
    for row in rows:
        if why := _why_no_figures(row):
            lines.append([row["name"], *[None] * 5, why[:60], None, None, None])
            continue
        seconds = row["forward_backward_s"]
        share = f"{limit_s / seconds:.0%}"
        lines.append([row["name"], *row["errors"].values(), row["within"], seconds, limit_s, share, row["peak_gib"]])
    print_table(f"error against float64, sequences of {layout.lengths} tokens", columns, lines)


def _write(rows: Sequence[Row], plain: dict[str, float], peak: Peak, layout: Layout) -> Path:
    headline = [
        [row["name"], _why_no_figures(row) or f"{row['forward_backward_s'] * 1e3:.2f} ms",
         f"{_limit_s(peak, layout) * 1e3:.2f} ms at peak"]
        for row in rows if "why_not" not in row
    ]  # fmt: skip
    results = {"lengths": layout.lengths, "plain_torch": plain, "implementations": rows, "peak": peak.as_dict()}
    return write_results("attention", layout.device, headline, results)
