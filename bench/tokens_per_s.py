"""Tokens/s of rollout, update and whole step, beside the device's limit and published figures."""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from bench.harness import (
    GIB,
    SHORTEST_S,
    Row,
    add_only,
    bench_command,
    child_environment,
    chosen,
    exit_code,
    free_cached,
    merged,
    print_table,
    read_results,
    reason,
    show_traceback,
    timed,
    write_results,
)
from bench.limits import Peak, decode_limit, measured_peak
from bench.shapes import QUICKSTART, QWEN3_0_6B, QWEN25_1_5B, Shape
from bench.torchrun import run_to_end, torchrun

if TYPE_CHECKING:
    from fastgrpo.policy.learner import Learner
    from fastgrpo.ranks import Ranks

PUBLISHED = (
    ("JustRL, 1.5B, 16k, end to end", "865-1,514", "A800", "32 GPUs x 15 days, mean response 4k-7k"),
    ("AReaL 0.1 and 0.3, 1.5B, 16k, end to end", "578-1,111", "H800", "by number of GPUs"),
    ("prime-rl, Qwen3-0.6B, 16,384, trainer only", "11,896", "H100", "MFU 11 %, 2 micro-batches, optimizer on CPU"),
)


HOST_BOUND = (
    "by the built-in engine, a decode loop for small models: on a GPU this measures the host (a thousand launches a "
    "token, and a wait where responses may end early); the engine for scale is vLLM"
)
COMPOSED = "rollout + update"


@dataclass(frozen=True)
class Protocol:
    """The sizes of a measurement. Responses have their full length; their tokens are random."""

    name: str
    shape: Shape
    update_lengths: tuple[int, ...]  # tokens of the sequences of one update
    tokens_per_microbatch: int
    prompt_tokens: int
    checkpointing: bool = False
    compiled: bool = False
    rollout: tuple[int, int, int, int] | None = None  # prompts, group size, prompt tokens, response tokens
    step: tuple[int, int, int, int] | None = None  # prompts, group size, response tokens, updates
    composed: bool = False  # whether a row adds rollout and update, for protocols whose step has shorter responses

    @property
    def parts(self) -> list[str]:
        has = {"update": True, "rollout": self.rollout, "step": self.step, COMPOSED: self.composed}
        return [part for part, there in has.items() if there]

    def row_name(self, part: str) -> str:
        return f"{self.name} {part}"


# prime-rl's published protocol: the trainer alone, with activation checkpointing.
PRIME_RL = Protocol("prime_rl", QWEN3_0_6B, (16384, 16384), 16384, 128, checkpointing=True)
LONG_1_5B = Protocol(
    "1.5B 16k", QWEN25_1_5B, (16384, 16384), 16384, 128,
    rollout=(8, 8, 8192, 96), step=(8, 8, 256, 1), composed=True,
)  # fmt: skip
LONG_CHECKPOINTED = replace(LONG_1_5B, name="1.5B 16k checkpointed", checkpointing=True, rollout=None, composed=False)
# A step of recipes/quickstart.py: 128 x 8 responses of 24 tokens, the length that a run's responses reach; 4 updates.
QUICKSTART_STEP = Protocol(
    "quickstart", QUICKSTART, (40,) * 256, 8192, 17, rollout=(128, 8, 17, 24), step=(128, 8, 24, 4)
)
# The protocol that is least likely to run out of memory comes first.
COMPILED = (
    replace(PRIME_RL, name="prime_rl compiled", compiled=True),
    replace(LONG_1_5B, name="1.5B 16k compiled", compiled=True, rollout=None, step=None, composed=False),
)
PROTOCOLS = {"cuda": (PRIME_RL, LONG_CHECKPOINTED, *COMPILED, LONG_1_5B), "cpu": (QUICKSTART_STEP,)}


def main(argv: Sequence[str]) -> int:
    """Measures, with ``--ranks N`` under torchrun. Returns 0, 1 if a row failed, or torchrun's exit code."""
    parser = _parser()
    options = parser.parse_args(argv)
    protocols = PROTOCOLS[options.device]
    wanted = chosen(parser, options.only, _names(protocols))
    from fastgrpo.config import ParallelConfig
    from fastgrpo.ranks import Ranks, choose_device, launched_ranks

    if options.ranks > 1 and launched_ranks()[1] == 1:
        return _launch(argv, options.ranks)
    device = choose_device(options.device)
    ranks = Ranks.connect(device, ParallelConfig())
    peak = measured_peak(device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    kept = read_results(_output(ranks), device).get("rows", []) if options.only else []
    rows = [row | {"name": f"{row['protocol']} {row['part']}"} for row in kept]
    rows = measure(protocols, wanted, rows, ranks, peak)
    if ranks.is_first:
        _report(rows, peak, ranks)
    ranks.barrier()
    dist.destroy_process_group()
    return exit_code("tokens_per_s", _failed(rows, wanted))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench tokens_per_s", description=__doc__)
    parser.add_argument("--device", default="cpu", choices=tuple(PROTOCOLS))
    parser.add_argument("--ranks", type=int, default=1, help="processes, by torchrun; one GPU each")
    add_only(parser)
    return parser


def _names(protocols: Sequence[Protocol]) -> list[str]:
    return [protocol.row_name(part) for protocol in protocols for part in protocol.parts]


def _launch(argv: Sequence[str], ranks: int) -> int:
    return run_to_end(torchrun(ranks, *bench_command("tokens_per_s", *argv)), child_environment()).returncode


def measure(
    protocols: Sequence[Protocol], wanted: Sequence[str], rows: list[Row], ranks: "Ranks", peak: Peak
) -> list[Row]:
    """Measures the wanted rows and returns all rows; each is written at once, because a later one may fail.

    On several ranks a failure ends the program, because the other ranks would wait for the one that failed.
    """
    for protocol in protocols:
        for part in protocol.parts:
            name = protocol.row_name(part)
            if name not in wanted and not (part == COMPOSED and _both_rates(protocol, rows)):
                continue
            row = _measured_row(protocol, part, rows, ranks, peak)
            rows = merged(rows, [row], _names(protocols))
            if ranks.is_first:
                _write(rows, peak, ranks)
            if ranks.count > 1 and "error" in row:
                raise SystemExit(exit_code("tokens_per_s", _failed([row], [name])))
    return rows


def _failed(rows: Sequence[Row], wanted: Sequence[str]) -> dict[str, str]:
    return {row["name"]: row["error"] for row in rows if row["name"] in wanted and "error" in row}


def _measured_row(protocol: Protocol, part: str, rows: Sequence[Row], ranks: "Ranks", peak: Peak) -> Row:
    """The figures of a part, or ``error``; and on a GPU its peak memory in both cases."""
    on_gpu = ranks.device.type == "cuda"
    row: Row = {"name": protocol.row_name(part), "protocol": protocol.name, "part": part, "shape": protocol.shape.name}
    row["sizes"] = {k: v for k, v in asdict(protocol).items() if k not in ("name", "shape")}
    free_cached(ranks.device)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(ranks.device)
    try:
        row |= _composed_row(protocol, rows) if part == COMPOSED else PARTS[part](protocol, ranks, peak)
    except Exception as error:
        show_traceback(error)
        row["error"] = reason(error)
    if on_gpu and part != COMPOSED:
        row["peak_allocated_gib"] = torch.cuda.max_memory_allocated(ranks.device) / GIB
        row["peak_reserved_gib"] = torch.cuda.max_memory_reserved(ranks.device) / GIB
    if on_gpu and part != "update":
        row["note"] = HOST_BOUND
    return row


def _learner(protocol: Protocol, ranks: "Ranks") -> "Learner":
    from bench.synthetic import random_learner
    from fastgrpo.config import ModelConfig, OptimizerConfig

    return random_learner(
        protocol.shape,
        ranks,
        ModelConfig(activation_checkpointing=protocol.checkpointing, compile=protocol.compiled),
        OptimizerConfig(tokens_per_microbatch=protocol.tokens_per_microbatch),
    )


def _update_row(protocol: Protocol, ranks: "Ranks", peak: Peak) -> Row:
    """The figures of an update: packing, forward, backward, clipping and AdamW."""
    from bench.synthetic import random_sequences
    from fastgrpo.policy.token_sums import TokenSums

    learner = _learner(protocol, ranks)
    sequences = random_sequences(protocol.shape, protocol.update_lengths, protocol.prompt_tokens)

    def update() -> None:
        learner.backward(learner.pack(sequences), TokenSums.zero(ranks.device))
        learner.apply(1e-6)

    ranks.barrier()
    # All ranks must run equally often, so on several there is one warm-up.
    time = timed(update, ranks.device, warmup_s=0.0 if ranks.count > 1 else None, repeats=3, budget_s=1e9)
    rate = _per_s(sum(protocol.update_lengths) / ranks.count, time.median_s)
    return _rates(rate, _update_limit(protocol, peak), time.spread_frac) | {"updates": time.repeats}


def _update_limit(protocol: Protocol, peak: Peak) -> float:
    """Tokens/s at an MFU of 1, for three forward passes' FLOPs; recomputation does not count."""
    num_tokens, num_sequences = sum(protocol.update_lengths), len(protocol.update_lengths)
    head_rows = num_tokens - num_sequences * (protocol.prompt_tokens - 1)
    return num_tokens * peak.flops_per_s / (3 * protocol.shape.forward_flops(protocol.update_lengths, head_rows))


def _per_s(count: float, seconds: float) -> float:
    return count / max(seconds, SHORTEST_S)


def _rollout_row(protocol: Protocol, ranks: "Ranks", peak: Peak) -> Row:
    """The figures of decoding alone: a generation's time less that of one which ends after the first token."""
    from bench.synthetic import random_engine, random_prompts
    from fastgrpo.rollout.generate import generate
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
    rate = _per_s(num_sequences * (response_tokens - 1), long_s - short_s)
    context = prompt_tokens + response_tokens // 2
    return _rates(rate, decode_limit(protocol.shape, peak, num_sequences, context), spread)


def _step_row(protocol: Protocol, ranks: "Ranks", peak: Peak) -> Row:
    """The figures of the trainer's step with random verdicts: sampled tokens by its time, with the weight sync."""
    from bench.synthetic import SyntheticPrompts, SyntheticTrainer, random_engine
    from fastgrpo.config import Config
    from fastgrpo.models.load import compute_dtype
    from fastgrpo.policy.sharding import full_weights
    from fastgrpo.rollout.local_rollouts import LocalRollouts
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
    trainer.rollouts.sync(0)
    trainer.step()
    steps = [trainer.step()[0] for _ in range(2)]
    step = min(steps, key=lambda s: s["step_s"])
    tokens = config.responses_per_step * response_tokens / ranks.count
    rate, slowest = _per_s(tokens, step["step_s"]), max(s["step_s"] for s in steps)
    phases = {name: value for name, value in step.items() if name.endswith("_s") and name != "tokens_per_s"}
    spread = slowest / max(step["step_s"], SHORTEST_S) - 1
    return _rates(rate, _step_limit(protocol, peak, ranks), spread) | {"phases": phases}


def _step_limit(protocol: Protocol, peak: Peak, ranks: "Ranks") -> float:
    """Tokens/s of a step at the limits, if a prompt is read once for all responses, without recomputed logprobs."""
    assert protocol.step is not None
    num_prompts, group_size, response_tokens, _ = protocol.step
    context = protocol.prompt_tokens + response_tokens // 2
    rollout = decode_limit(protocol.shape, peak, num_prompts * group_size // ranks.count, context)
    read = 1 + protocol.prompt_tokens / (group_size * response_tokens)
    return 1 / (1 / rollout + read / _update_limit(protocol, peak))


PARTS: dict[str, Callable[[Protocol, "Ranks", Peak], Row]] = {
    "update": _update_row,
    "rollout": _rollout_row,
    "step": _step_row,
}


def _both_rates(protocol: Protocol, rows: Sequence[Row]) -> list[Row]:
    """The rows of rollout and update, or none if one is not measured."""
    names = [protocol.row_name(part) for part in ("rollout", "update")]
    found = [row for row in rows if row["name"] in names and "error" not in row]
    return found if len(found) == len(names) else []


def _composed_row(protocol: Protocol, rows: Sequence[Row]) -> Row:
    """A row of rollout and update one after the other at their rates, without long tails, weight sync and rewards."""
    both = _both_rates(protocol, rows)
    if not both:
        needed = " and ".join(repr(protocol.row_name(part)) for part in ("rollout", "update"))
        raise ValueError(f"it follows from {needed}, of which one has no figure: measure them first")
    rate, limit = (1 / sum(1 / row[key] for row in both) for key in ("tokens_per_s", "limit_tokens_per_s"))
    return _rates(rate, limit, max(row["spread_frac"] for row in both))


def _rates(rate: float, limit: float, spread: float) -> Row:
    return {
        "tokens_per_s": rate,
        "limit_tokens_per_s": limit,
        "share_of_limit": rate / limit,
        "spread_frac": spread,
    }


def _report(rows: Sequence[Row], peak: Peak, ranks: "Ranks") -> None:
    print(
        f"measured here: matmul {peak.flops_per_s / 1e12:.3g} TFLOP/s in {peak.dtype}, copy "
        f"{peak.bytes_per_s / 1e9:.3g} GB/s, on each of {ranks.count} ranks"
    )
    print_table(
        "tokens/s per device; the limit is what these two figures allow (for the update: MFU)",
        ("row", "tokens/s", "limit", "share of limit", "spread", "GiB allocated", "reserved", "note"),
        [_line(row) for row in rows],
    )
    for row in rows:
        if "phases" in row:
            print(f"{row['name']}: " + ", ".join(f"{k} {v:.3g}" for k, v in row["phases"].items()))
    print_table("published", ("what", "tokens/s per GPU", "GPU", "how"), PUBLISHED)
    print(_write(rows, peak, ranks))


def _line(row: Row) -> list[Any]:
    memory = [row.get("peak_allocated_gib"), row.get("peak_reserved_gib")]
    if "error" in row:
        return [row["name"], "failed", None, None, None, *memory, row["error"]]
    share, spread = f"{row['share_of_limit']:.1%}", f"{row['spread_frac']:.0%}"
    return [row["name"], row["tokens_per_s"], row["limit_tokens_per_s"], share, spread, *memory, row.get("note", "")]


def _write(rows: Sequence[Row], peak: Peak, ranks: "Ranks") -> Path:
    results = {"rows": rows, "peak": peak.as_dict(), "num_ranks": ranks.count, "published": PUBLISHED}
    return write_results(_output(ranks), ranks.device, [_headline(row) for row in rows], results)


def _output(ranks: "Ranks") -> str:
    return "tokens_per_s" if ranks.count == 1 else f"tokens_per_s_{ranks.count}_ranks"


def _headline(row: Row) -> list[str]:
    what = f"{row['name']}{' (bound by the host)' if 'note' in row else ''}"
    if "error" in row:
        return [what, f"failed: {row['error'][:60]}", ""]
    return [what, f"{row['tokens_per_s']:,.0f} tokens/s", f"limit {row['limit_tokens_per_s']:,.0f}"]
