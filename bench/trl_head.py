"""One scoring of TRL's GRPOTrainer, forward and backward, with TRL's own LM head and with ours through the adapter.

Runs in TRL's environment: `.venv-trl/bin/python -m bench trl_head`. Both trainers have the same model, whose one narrow
layer costs little beside its head, and score the same rows in turns. The limit is four matmuls: logits, logits again in
the backward, and two gradients. Peaks are those of fresh processes.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from bench import harness

ROWS, PROMPT_TOKENS, RESPONSE_TOKENS = 8, 16, 256
VOCABULARY, WIDTHS = 32_768, (256, 512)
HEADS = ("TRL's", "ours")
CPU = torch.device("cpu")


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("python -m bench trl_head", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="two rounds of a small vocabulary, no result is kept")
    parser.add_argument("--peak-of", choices=HEADS, help=argparse.SUPPRESS)  # a fresh process's part
    parser.add_argument("--width", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if find_spec("trl") is None:
        print("trl_head: no TRL here: run it by .venv-trl/bin/python", file=sys.stderr)
        return 2
    if options.quick:
        options.vocabulary, options.rounds = 2048, 2
    if options.peak_of:
        print(json.dumps(peak(options.peak_of, options.vocabulary, options.width)))
        return 0
    rows = [measured(options.vocabulary, width, options.rounds) for width in WIDTHS]
    harness.print_table(
        f"{ROWS * RESPONSE_TOKENS} tokens, V = {options.vocabulary}", list(rows[0]), [list(r.values()) for r in rows]
    )
    if not options.quick:
        headline = [[f"TRL's head / ours, D = {r['D']}", r["TRL's / ours"], None] for r in rows]
        harness.write_results("trl_head", CPU, headline, rows)
    return 0


def measured(vocabulary: int, width: int, rounds: int) -> dict[str, Any]:
    """A row: median seconds of each head and of four matmuls, the median of the rounds' ratios, peaks in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        works = {head: scoring(head, vocabulary, width, Path(folder) / head) for head in HEADS}
        times = harness.interleaved({**works, "four matmuls": four_matmuls(vocabulary, width)}, CPU, rounds=rounds)
    row: dict[str, Any] = {"D": width} | {f"{name}, s": statistics.median(t) for name, t in times.items()}
    row["TRL's / ours"] = statistics.median(a / b for a, b in zip(times["TRL's"], times["ours"], strict=True))
    for head in HEADS:
        found = harness.run_worker(
            ["trl_head", "--peak-of", head, "--width", str(width), "--vocabulary", str(vocabulary)]
        )
        row[f"{head}, peak MiB"] = found.get("mib", found.get("error"))
    return row


def peak(head: str, vocabulary: int, width: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        work = scoring(head, vocabulary, width, Path(folder))
        work()
        with harness.PeakMemory(CPU) as found:
            work()
    return {"mib": found.bytes / 2**20}


def scoring(head: str, vocabulary: int, width: int, folder: Path) -> Callable[[], None]:
    """What computes logprobs and entropy of the responses as a training step of TRL does, and the gradients by them."""
    from bench.peers.tiny_trainer import grpo_trainer

    trainer = grpo_trainer(folder, vocabulary, width)
    if head == "ours":
        from fastgrpo_kernels.adapters.trl import use_linear_logprobs

        use_linear_logprobs(trainer)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, vocabulary, (ROWS, PROMPT_TOKENS + RESPONSE_TOKENS), generator=generator)
    signal = torch.randn(ROWS, RESPONSE_TOKENS, generator=generator)

    def work() -> None:
        logprobs, *_ = trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, torch.ones_like(ids), RESPONSE_TOKENS, compute_entropy=True
        )
        (logprobs * signal).sum().backward()
        trainer.model.zero_grad()  # the gradients count as memory of the work

    return work


def four_matmuls(vocabulary: int, width: int) -> Callable[[], None]:
    hidden, weight = torch.randn(ROWS * RESPONSE_TOKENS, width), torch.randn(vocabulary, width)
    logits = torch.empty(len(hidden), vocabulary)

    def work() -> None:
        torch.mm(hidden, weight.T, out=logits)
        torch.mm(hidden, weight.T, out=logits)
        torch.mm(logits, weight)
        torch.mm(logits.T, hidden)

    return work
