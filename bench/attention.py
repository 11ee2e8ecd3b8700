"""Packed attention at 16,384 tokens: flash-attn, torch's varlen, sdpa with a mask: errors, time, memory."""

import argparse
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.harness import GIB, PeakMemory, print_table, synchronize, timed, write_results
from bench.shapes import QWEN25_1_5B

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]  # q [1, H, T, E], k and v [1, K, T, E] -> [1, T, H, E]
FLOOR = 1e-6


def main(argv: Sequence[str]) -> int:
    """Returns 1 if an implementation fails, or errs more than twice as much as plain torch in the same dtype."""
    options = _options(argv)
    device = torch.device(options.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    layout = Layout(options.tokens or (16384 if device.type == "cuda" else 1024), device)
    inputs = layout.inputs(dtype)
    oracle = _values_and_gradients(layout.by_definition, tuple(t.double() for t in inputs), layout.upstream.double())
    plain = _errors(_values_and_gradients(layout.by_definition, inputs, layout.upstream.to(dtype)), oracle)
    rows = [_row(name, run, layout, inputs, oracle, plain) for name, run in layout.implementations().items()]
    _report(rows, plain, layout, dtype, device)
    return 0 if all(row.get("within", False) for row in rows) else 1


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench attention", description=__doc__)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--tokens", type=int, help="default: 16384 on CUDA, 1024 on CPU")
    return parser.parse_args(argv)


class Layout:
    """One packed row of mixed lengths, and every way to attend within its sequences; Qwen2.5-1.5B's heads."""

    def __init__(self, num_tokens: int, device: torch.device) -> None:
        from bench.synthetic import response_mix
        from fastgrpo.attention import PackedLayout

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

    def implementations(self) -> dict[str, Attention]:
        from fastgrpo.attention import flash_attention, padded_attention, varlen_attention

        def ours(attention: Callable[..., Any]) -> Attention:
            return lambda q, k, v: attention(None, q, k, v, None, layout=self.packed, scaling=self.scaling)[0]

        found: dict[str, Attention] = {"padded": ours(padded_attention), "sdpa": self.masked_sdpa}
        if self.device.type == "cuda":
            found["varlen"] = ours(varlen_attention)
            if find_spec("flash_attn") is not None:
                found["flash_attn"] = ours(flash_attention)
        return found

    def masked_sdpa(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As transformers' ``sdpa`` attends on packed rows: a block-diagonal causal mask of all token pairs."""
        lengths = torch.tensor(self.lengths, device=self.device)
        sequence = torch.arange(len(lengths), device=self.device).repeat_interleave(lengths)
        place = torch.arange(self.num_tokens, device=self.device)
        mask = (sequence[:, None] == sequence) & (place[:, None] >= place)
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scaling).transpose(1, 2)

    def forward_flops(self) -> float:
        """Half the token pairs in both products; forward and backward together take 3.5 times as many."""
        return 2.0 * QWEN25_1_5B.query_width * sum(n * n for n in self.lengths)


NAMES = ("output", "grad_q", "grad_k", "grad_v")


def _values_and_gradients(attention: Attention, inputs: Sequence[Tensor], upstream: Tensor) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in inputs]
    output = attention(*leaves)
    output.backward(upstream.to(output.dtype))
    return [output.detach(), *(t.grad for t in leaves if t.grad is not None)]


def _errors(values: Sequence[Tensor], oracle: Sequence[Tensor]) -> dict[str, float]:
    """Root mean square of the difference, by that of the oracle."""
    pairs = zip(NAMES, values, oracle, strict=True)
    return {name: float((v.double() - o).norm() / o.norm()) for name, v, o in pairs}


def _row(
    name: str,
    run: Attention,
    layout: Layout,
    inputs: Sequence[Tensor],
    oracle: Sequence[Tensor],
    plain: dict[str, float],
) -> dict[str, Any]:
    """One implementation's figures; what it raised, if it cannot run here."""
    upstream = layout.upstream.to(inputs[0].dtype)
    try:
        errors = _errors(_values_and_gradients(run, inputs, upstream), oracle)
        with PeakMemory(layout.device) as peak:
            _values_and_gradients(run, inputs, upstream)
            synchronize(layout.device)
        time = timed(lambda: _values_and_gradients(run, inputs, upstream), layout.device, budget_s=4.0)
    except Exception as error:  # one kernel that is broken here must not hide the others
        return {"name": name, "error": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    return {
        "name": name,
        "errors": errors,
        "within": all(errors[n] <= 2 * plain[n] + FLOOR for n in NAMES),
        "forward_backward_s": time.median_s,
        "spread_frac": time.spread_frac,
        "peak_gib": peak.bytes / GIB if layout.device.type == "cuda" else None,  # a CPU process keeps what it freed
    }


def _report(
    rows: list[dict[str, Any]], plain: dict[str, float], layout: Layout, dtype: torch.dtype, device: torch.device
) -> None:
    from bench.limits import measured_peak

    peak = measured_peak(device, dtype)
    limit_s = 3.5 * layout.forward_flops() / peak.flops_per_s
    columns = ("implementation", *NAMES, "within 2x", "forward + backward s", "at peak FLOP/s s", "of it", "GiB")
    lines = [["plain torch, " + peak.dtype, *plain.values(), None, None, None, None, None]]
    for row in rows:
        if "error" in row:
            lines.append([row["name"], *[None] * 4, False, row["error"], None, None, None])
            continue
        seconds = row["forward_backward_s"]
        share = f"{limit_s / seconds:.0%}"
        lines.append([row["name"], *row["errors"].values(), row["within"], seconds, limit_s, share, row["peak_gib"]])
    print_table(f"error against float64, sequences of {layout.lengths} tokens", columns, lines)
    headline = [
        [row["name"], f"{row['forward_backward_s'] * 1e3:.2f} ms" if "error" not in row else row["error"],
         f"{limit_s * 1e3:.2f} ms at peak"]
        for row in rows
    ]  # fmt: skip
    results = {"lengths": layout.lengths, "plain_torch": plain, "implementations": rows, "peak": peak.as_dict()}
    print(write_results("attention", device, headline, results))
