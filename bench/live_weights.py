"""Writing weights into a live model on the same device, beside copies of the same bytes; without an engine."""

import argparse
import statistics
from collections.abc import Sequence
from typing import Any

import torch

from bench.harness import GIB, exit_code, interleaved, print_table, reason, show_traceback, spread_frac, write_results
from bench.shapes import QUICKSTART, QWEN25_1_5B

BAR = "<= 1.5x"
DIFFERS = "the live weights are not those that were written"


def main(argv: Sequence[str]) -> int:
    """Measures. Returns 1 if the write failed, or the live weights are not those that were written."""
    parser = argparse.ArgumentParser(prog="bench live_weights", description=__doc__)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args(argv)
    device = torch.device(options.device)
    try:
        row = measure(device, options.rounds)
    except Exception as error:
        show_traceback(error)
        return exit_code("live_weights", {"write": reason(error)})
    row_of_table = (row["shape"], row["gib"], 1e3 * row["seconds"], row["ratio"], row["spread_frac"], BAR)
    print_table("a write in place", ("model", "GiB", "ms", "x one flat copy", "spread", "bar"), [row_of_table])
    headline = [("live write / one copy of as many bytes", f"{row['ratio']:.2f}x", BAR)]
    print(write_results("live_weights", device, headline, row))
    return exit_code("live_weights", {} if row["equal"] else {"write": DIFFERS})


def measure(device: torch.device, rounds: int) -> dict[str, Any]:
    """Times of `LiveWeights.write` and of one flat copy of as many bytes, and their ratio in each round."""
    from bench.synthetic import random_model
    from fastgrpo.rollout.builtin.kv_cache import ATTENTION
    from fastgrpo.rollout.weight_sync import LiveWeights

    shape = QWEN25_1_5B if device.type == "cuda" else QUICKSTART
    live = LiveWeights.of_modules(random_model(shape, device, torch.bfloat16, ATTENTION))
    torch.manual_seed(1)
    new = {name: torch.randn_like(view) for name, view in live.views.items()}
    source = torch.cat([value.flatten() for value in new.values()])
    target = torch.empty_like(source)
    works = {"write": lambda: live.write(new.items()), "copy": lambda: target.copy_(source)}
    times = interleaved(works, device, rounds=rounds)
    ratios = [w / c for w, c in zip(times["write"], times["copy"], strict=True)]
    return {
        "shape": shape.name,
        "gib": source.nbytes / GIB,
        "seconds": statistics.median(times["write"]),
        "ratio": statistics.median(ratios),
        "spread_frac": spread_frac(ratios),
        "ratios": ratios,
        "equal": all(torch.equal(live.views[name], value) for name, value in new.items()),
    }
