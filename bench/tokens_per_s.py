"""Tokens/s of rollout, update and whole step, beside the device's limit and the published figures."""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from bench.harness import ROOT, child_environment, print_table, timed, write_results
from bench.limits import Peak, decode_limit, measured_peak
from bench.shapes import QUICKSTART, QWEN3_0_6B, QWEN25_1_5B, Shape

PUBLISHED = (
    ("JustRL, 1.5B, 16k, end to end", "865-1,514", "A800", "32 GPUs x 15 days, mean response 4k-7k"),
    ("AReaL 0.1 and 0.3, 1.5B, 16k, end to end", "578-1,111", "H800", "by number of GPUs"),
    ("prime-rl, Qwen3-0.6B, 16,384, trainer only", "11,896", "H100", "MFU 11 %, 2 micro-batches, optimizer on CPU"),
)


@dataclass(frozen=True)
class Protocol:
    """Sizes of a measurement; responses have their full length, the tokens mean nothing."""

    name: str
    shape: Shape
    update_lengths: tuple[int, ...]  # tokens of the sequences of one update
    tokens_per_microbatch: int
    prompt_tokens: int
    checkpointing: bool = False
    rollout: tuple[int, int, int, int] | None = None  # prompts, group size, prompt tokens, response tokens
    step: tuple[int, int, int, int] | None = None  # prompts, group size, response tokens, updates


# A step of recipes/quickstart.py: 128 x 8 responses of 24 tokens, which is what a run's responses come to, 4 updates.
QUICKSTART_STEP = Protocol(
    "quickstart", QUICKSTART, (40,) * 256, 8192, 17, rollout=(128, 8, 17, 24), step=(128, 8, 24, 4)
)
LONG_1_5B = Protocol(
    "Qwen2.5-1.5B, 16k", QWEN25_1_5B, (16384, 16384), 16384, 128, rollout=(8, 8, 8192, 96), step=(8, 8, 256, 1)
)
PRIME_RL = Protocol("prime-rl's: Qwen3-0.6B, 16,384, checkpointed", QWEN3_0_6B, (16384, 16384), 16384, 128, True)


def main(argv: Sequence[str]) -> int:
    """Measures; with ``--ranks N`` launches itself under torchrun. Returns 0, or torchrun's exit code."""
    options = _options(argv)
    from fastgrpo.config import ParallelConfig
    from fastgrpo.ranks import Ranks, choose_device, launched_ranks

    if options.ranks > 1 and launched_ranks()[1] == 1:
        return _launch(argv, options.ranks)
    device = choose_device(options.device)
    ranks = Ranks.connect(device, ParallelConfig())
    peak = measured_peak(device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    protocols = (LONG_1_5B, PRIME_RL) if device.type == "cuda" else (QUICKSTART_STEP,)
    rows = [row for p in protocols for row in measure(p, ranks, peak)]
    if ranks.is_first:
        _report(rows, peak, ranks)
    ranks.barrier()
    dist.destroy_process_group()
    return 0


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench tokens_per_s", description=__doc__)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--ranks", type=int, default=1, help="processes, by torchrun; one GPU each")
    return parser.parse_args(argv)


def _launch(argv: Sequence[str], ranks: int) -> int:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    command += ["-m", "bench", "tokens_per_s", *argv]
    return subprocess.run(command, cwd=ROOT, env=child_environment(), check=False).returncode


def measure(protocol: Protocol, ranks: Any, peak: Peak) -> list[dict[str, Any]]:
    """One row each for what the protocol has: update, rollout, step, and the step that their rates come to at 16k."""
    rows = [_update_row(protocol, ranks, peak)]
    _free(ranks)
    if protocol.rollout is not None:
        rows.append(_rollout_row(protocol, ranks, peak))
        _free(ranks)
    if protocol.step is not None:
        rows.append(_step_row(protocol, ranks, rows))
        _free(ranks)
    if protocol.rollout is not None and protocol.shape is not QUICKSTART:  # its step has that length already
        rows.append(_composed_row(protocol, rows))
    return rows


def _free(ranks: Any) -> None:
    import gc

    gc.collect()
    if ranks.device.type == "cuda":
        torch.cuda.empty_cache()


def _learner(protocol: Protocol, ranks: Any) -> Any:
    from bench.synthetic import random_learner
    from fastgrpo.config import ModelConfig, OptimizerConfig

    return random_learner(
        protocol.shape,
        ranks,
        ModelConfig(activation_checkpointing=protocol.checkpointing),
        OptimizerConfig(tokens_per_microbatch=protocol.tokens_per_microbatch),
    )


def _update_row(protocol: Protocol, ranks: Any, peak: Peak) -> dict[str, Any]:
    """Packing, forward, backward, clipping and AdamW; MFU counts three forward passes, recomputation is no work."""
    from bench.synthetic import random_sequences
    from fastgrpo.policy.learner import TokenSums

    learner = _learner(protocol, ranks)
    sequences = random_sequences(protocol.shape, protocol.update_lengths, protocol.prompt_tokens)

    def update() -> None:
        learner.backward(learner.pack(sequences), TokenSums.zero())
        learner.apply(1e-6)

    ranks.barrier()
    time = timed(update, ranks.device, warmup_s=0.0 if ranks.count > 1 else 1.0, repeats=3, budget_s=1e9)
    tokens = sum(protocol.update_lengths) / ranks.count
    flops = 3 * protocol.shape.forward_flops(protocol.update_lengths, sum(len(s.response) for s in sequences))
    limit = tokens * peak.flops_per_s / (flops / ranks.count)
    return _row(protocol, "update", tokens / time.median_s, limit, time.spread_frac)


def _rollout_row(protocol: Protocol, ranks: Any, peak: Peak) -> dict[str, Any]:
    """Decoding alone: a generation without the time of one that ends with its first token, after the prefill."""
    from bench.synthetic import random_engine, random_prompts
    from fastgrpo.rollout.engine import generate
    from fastgrpo.types import Sampling

    assert protocol.rollout is not None
    num_prompts, group_size, prompt_tokens, response_tokens = protocol.rollout
    prompts = ranks.share_of(random_prompts(protocol.shape, num_prompts, prompt_tokens))
    num_sequences = len(prompts) * group_size
    engine = random_engine(protocol.shape, ranks, num_sequences)

    def seconds(num_tokens: int) -> tuple[float, float]:
        sampling = Sampling(group_size, num_tokens)
        time = timed(lambda: generate(engine, prompts, sampling), ranks.device, warmup_s=0.0, repeats=3, budget_s=15)
        return time.median_s, time.spread_frac

    (short_s, _), (long_s, spread) = seconds(1), seconds(response_tokens)
    rate = num_sequences * (response_tokens - 1) / (long_s - short_s)
    context = prompt_tokens + response_tokens // 2
    return _row(protocol, "rollout", rate, decode_limit(protocol.shape, peak, num_sequences, context), spread)


def _step_row(protocol: Protocol, ranks: Any, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The trainer's own step with a coin for a verifier: sampled tokens by its whole time, weight sync included.

    Its limit reads every prompt once for all its responses, and recomputes no logprobs."""
    from bench.synthetic import SyntheticPrompts, SyntheticTrainer, random_engine
    from fastgrpo.config import Config
    from fastgrpo.policy.model import compute_dtype
    from fastgrpo.policy.sharding import full_weights
    from fastgrpo.rollout.local import LocalRollouts
    from fastgrpo.rollout.prompts_in_order import PromptsInOrder
    from fastgrpo.types import Sampling

    assert protocol.step is not None
    num_prompts, group_size, response_tokens, updates = protocol.step
    config = Config()
    config = replace(
        config,
        data=replace(config.data, prompts_per_step=num_prompts),
        rollout=replace(config.rollout, group_size=group_size, max_response_tokens=response_tokens),
        optimizer=replace(
            config.optimizer, updates_per_step=updates, tokens_per_microbatch=protocol.tokens_per_microbatch
        ),
    )
    learner = _learner(protocol, ranks)
    learner.config = config.optimizer
    trainer = SyntheticTrainer(
        config=config,
        ranks=ranks,
        tokenizer=None,
        rollouts=LocalRollouts(
            random_engine(protocol.shape, ranks, config.responses_per_step),
            ranks,
            PromptsInOrder(SyntheticPrompts(protocol.shape, protocol.prompt_tokens)),  # type: ignore[arg-type]
            Sampling(group_size, response_tokens),
            partial(full_weights, learner.policy),
            compute_dtype(config.model, ranks.device),
        ),
        pool=None,  # type: ignore[arg-type]
        learner=learner,
        run_dir=Path(tempfile.gettempdir()),
    )
    trainer.rollouts.publish(0)
    trainer.step()
    steps = [trainer.step()[0] for _ in range(2)]
    step = min(steps, key=lambda s: s["step_s"])
    tokens = config.responses_per_step * response_tokens / ranks.count
    limits = {row["part"]: row["limit_tokens_per_s"] for row in rows}
    limit = 1 / (
        1 / limits["rollout"] + (1 + protocol.prompt_tokens / (group_size * response_tokens)) / limits["update"]
    )
    spread = max(s["step_s"] for s in steps) / step["step_s"] - 1
    phases = {name: value for name, value in step.items() if name.endswith("_s") and name != "tokens_per_s"}
    return _row(protocol, "step", tokens / step["step_s"], limit, spread) | {"phases": phases}


def _composed_row(protocol: Protocol, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Rollout and update one after the other at the rates above, each token once: no tail, no sync, no reward."""
    by_part = {row["part"]: row for row in rows}

    def together(key: str) -> float:
        return 1 / sum(1 / by_part[part][key] for part in ("rollout", "update"))

    limit = together("limit_tokens_per_s")
    return _row(protocol, "rollout + update", together("tokens_per_s"), limit, 0.0)


def _row(protocol: Protocol, part: str, rate: float, limit: float, spread: float) -> dict[str, Any]:
    return {
        "protocol": protocol.name,
        "part": part,
        "tokens_per_s": rate,
        "limit_tokens_per_s": limit,
        "share_of_limit": rate / limit,
        "spread_frac": spread,
        "sizes": {k: v for k, v in asdict(protocol).items() if k not in ("name", "shape")},
    }


def _report(rows: list[dict[str, Any]], peak: Peak, ranks: Any) -> None:
    print(
        f"measured here: matmul {peak.flops_per_s / 1e12:.3g} TFLOP/s in {peak.dtype}, copy "
        f"{peak.bytes_per_s / 1e9:.3g} GB/s, on each of {ranks.count} ranks"
    )
    print_table(
        "tokens/s per device; the limit is what these two figures allow (for the update: MFU)",
        ("protocol", "part", "tokens/s", "limit", "share of limit", "spread"),
        [
            [r["protocol"], r["part"], r["tokens_per_s"], r["limit_tokens_per_s"],
             f"{r['share_of_limit']:.1%}", f"{r['spread_frac']:.0%}"]
            for r in rows
        ],
    )  # fmt: skip
    for row in rows:
        if "phases" in row:
            print(f"{row['protocol']}, a step: " + ", ".join(f"{k} {v:.3g}" for k, v in row["phases"].items()))
    print_table("published", ("what", "tokens/s per GPU", "GPU", "how"), PUBLISHED)
    headline = [
        [f"{r['part']}, {r['protocol']}", f"{r['tokens_per_s']:,.0f} tokens/s", f"limit {r['limit_tokens_per_s']:,.0f}"]
        for r in rows
    ]
    name = "tokens_per_s" if ranks.count == 1 else f"tokens_per_s_{ranks.count}_ranks"
    results = {"rows": rows, "peak": peak.as_dict(), "num_ranks": ranks.count, "published": PUBLISHED}
    print(write_results(name, ranks.device, headline, results))
