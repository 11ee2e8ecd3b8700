"""Sampling by vLLM and by the built-in engine: tokens/s on the same prompts, weight sync, and a whole step of each."""

import argparse
import gc
import math
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bench import vllm_models
from bench.harness import exit_code, interleaved, print_table, reason, show_traceback, spread_frac, write_results
from bench.limits import Peak, decode_limit, measured_peak
from bench.shapes import QUICKSTART, QWEN25_1_5B, Shape

if TYPE_CHECKING:
    from fastgrpo.config import Config
    from fastgrpo.policy.learner import Learner
    from fastgrpo.ranks import Ranks
    from fastgrpo.rollout.engine_protocol import RolloutEngine

ENGINES = ("builtin", "vllm")
NO_PHASES = ("tokens_per_s", "step_s", "engine_busy_s")


@dataclass(frozen=True)
class Sizes:
    """The sizes of a measurement. Responses have their full length; their tokens are random."""

    shape: Shape
    num_prompts: int
    group_size: int
    prompt_tokens: int
    response_tokens: int
    step_prompt_tokens: int  # a whole step trains on what it samples, so its prompts are short
    step_response_tokens: int
    context: int
    tokens_per_microbatch: int
    kv_cache_gib: float
    repeats: int = 5


QUICK = Sizes(QUICKSTART, 2, 2, 16, 8, 16, 8, 64, 256, 1.0)
SMALL = Sizes(QUICKSTART, 16, 8, 17, 48, 17, 48, 128, 8192, 1.0)
LONG_1_5B = Sizes(QWEN25_1_5B, 8, 8, 8192, 96, 128, 256, 16384, 16384, 24.0)


def main(argv: Sequence[str]) -> int:
    """Measures. Returns 1 if an engine failed, else 0, also without vLLM."""
    options = _options(argv)
    if reason := vllm_models.why_no_vllm():
        print(f"rollout_vllm is not measured: {reason}")
        return 0
    vllm_models.quiet()
    from fastgrpo.config import ParallelConfig
    from fastgrpo.ranks import Ranks, choose_device

    device = choose_device(options.device)
    sizes = QUICK if options.quick else (LONG_1_5B if device.type == "cuda" else SMALL)
    peak = measured_peak(device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    ranks = Ranks.connect(device, ParallelConfig())
    with tempfile.TemporaryDirectory() as folder, vllm_models.one_process_group():
        vllm_models.write_model(sizes.shape, _dtype(device), Path(folder), device)
        rows, failed = measure_all(sizes, Path(folder), ranks)
    report(rows, sizes, peak, device, options.quick)
    return exit_code("rollout_vllm", failed)


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench rollout_vllm", description=__doc__)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--quick", action="store_true", help="a tiny model and few tokens, no result is kept")
    return parser.parse_args(argv)


def _dtype(device: torch.device) -> torch.dtype:
    from fastgrpo.config import ModelConfig
    from fastgrpo.models.load import compute_dtype

    return compute_dtype(ModelConfig(), device)


def measure_all(sizes: Sizes, folder: Path, ranks: "Ranks") -> tuple[list[dict[str, Any]], dict[str, str]]:
    """A row for every engine that ran, and the reasons why others did not."""
    rows, failed = [], {}
    for name in ENGINES:
        try:
            rows.append(measure(name, sizes, folder, ranks))
        except Exception as error:
            show_traceback(error)
            failed[name] = reason(error)
    return rows, failed


def measure(name: str, sizes: Sizes, folder: Path, ranks: "Ranks") -> dict[str, Any]:
    """All figures of an engine, which is freed afterwards. The learner is made first: the engine takes what is left."""
    from fastgrpo.rollout.engine_spec import EngineSpec
    from fastgrpo.rollout.engines import start_engine

    config = _config(name, sizes, folder)
    learner = _learner(config, sizes, ranks)
    engine = start_engine(EngineSpec(config, ranks.device.type, "own_process"))
    try:
        row = {"engine": name, **_sampling(engine, sizes, ranks.device), **_sync(engine, learner, ranks.device)}
        return row | _step(engine, learner, config, sizes, ranks)
    finally:
        engine.close()
        del engine, learner
        gc.collect()
        if ranks.device.type == "cuda":
            torch.cuda.empty_cache()


def _config(name: str, sizes: Sizes, folder: Path) -> "Config":
    from fastgrpo.config import Config

    base = Config()
    return replace(
        base,
        model=replace(base.model, path=str(folder)),
        data=replace(
            base.data,
            prompts_per_step=sizes.num_prompts,
            max_prompt_tokens=sizes.context - sizes.step_response_tokens,
        ),
        rollout=replace(
            base.rollout,
            engine=name,
            group_size=sizes.group_size,
            max_response_tokens=sizes.step_response_tokens,
            max_sequences=sizes.num_prompts * sizes.group_size,
            kv_cache_gib=sizes.kv_cache_gib if name == "vllm" else 0.0,
        ),
        sync=replace(base.sync, compare_every=0),
        optimizer=replace(base.optimizer, updates_per_step=1, tokens_per_microbatch=sizes.tokens_per_microbatch),
    )


def _learner(config: "Config", sizes: Sizes, ranks: "Ranks") -> "Learner":
    from bench.synthetic import random_learner

    return random_learner(sizes.shape, ranks, config.model, config.optimizer)


def _sampling(engine: "RolloutEngine", sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """Tokens/s of whole responses, and of decoding alone, without the time of responses of a single token.

    The version of the weights changes every time, so that no prompt is found in a cache.
    """
    from bench.synthetic import random_prompts
    from fastgrpo.rollout.generate import generate
    from fastgrpo.types import Sampling

    prompts = random_prompts(sizes.shape, sizes.num_prompts, sizes.prompt_tokens)
    versions = iter(range(1, 1000))

    def draw(num_tokens: int) -> None:
        groups = generate(engine, prompts, Sampling(sizes.group_size, num_tokens))
        assert all(len(s.response) == num_tokens for g in groups for s in g)

    seconds = interleaved(
        {"first token": partial(draw, 1), "all": partial(draw, sizes.response_tokens)},
        device,
        prepare=lambda: engine.write_weights([], next(versions)),
        rounds=sizes.repeats,
        warmup_s=0.0,
    )
    first_s, all_s = (statistics.median(seconds[part]) for part in ("first token", "all"))
    num_sequences = sizes.num_prompts * sizes.group_size
    decode_s = all_s - first_s
    return {
        "tokens_per_s": num_sequences * sizes.response_tokens / all_s,
        "decode_tokens_per_s": _rate(num_sequences * (sizes.response_tokens - 1), decode_s),
        "prefill_s": first_s,
        "spread_frac": spread_frac(seconds["all"]),
    }


def _rate(num_tokens: float, seconds: float) -> float:
    """Tokens/s; NaN if the difference of two times is not positive, which noise can cause for a tiny model."""
    return num_tokens / seconds if seconds > 0 else math.nan


def _sync(engine: "RolloutEngine", learner: "Learner", device: torch.device) -> dict[str, float]:
    from fastgrpo.policy.sharding import full_weights

    works = {"sync": lambda: engine.write_weights(full_weights(learner.policy), 0)}
    return {"sync_s": statistics.median(interleaved(works, device, rounds=5)["sync"])}


def _step(
    engine: "RolloutEngine", learner: "Learner", config: "Config", sizes: Sizes, ranks: "Ranks"
) -> dict[str, Any]:
    """The faster of two of the trainer's steps, with random verdicts."""
    from bench.synthetic import SyntheticPrompts, SyntheticTrainer
    from fastgrpo.policy.sharding import full_weights
    from fastgrpo.rollout.local_rollouts import LocalRollouts
    from fastgrpo.rollout.prompts_in_order import PromptsInOrder
    from fastgrpo.types import Sampling

    rollouts = LocalRollouts(
        engine,
        ranks,
        PromptsInOrder(SyntheticPrompts(sizes.shape, sizes.step_prompt_tokens)),  # type: ignore[arg-type]
        Sampling(sizes.group_size, sizes.step_response_tokens),
        partial(full_weights, learner.policy),
        _dtype(ranks.device),
        compare_every=0,
    )
    trainer = SyntheticTrainer(
        config=config,
        ranks=ranks,
        tokenizer=None,
        rollouts=rollouts,
        pool=None,  # type: ignore[arg-type]
        learner=learner,
        run_dir=Path(tempfile.gettempdir()),
    )
    rollouts.sync(0)  # only this first sync is compared by checksums
    trainer.step()
    step = min((trainer.step()[0] for _ in range(2)), key=lambda s: s["step_s"])
    phases = {k: v for k, v in step.items() if k.endswith("_s") and k not in NO_PHASES}
    return {"step_s": step["step_s"], "step_tokens_per_s": step["tokens_per_s"], "phases": phases}


def report(rows: list[dict[str, Any]], sizes: Sizes, peak: Peak, device: torch.device, quick: bool) -> None:
    """Prints the rows, and writes the results unless it was a quick run."""
    num_sequences = sizes.num_prompts * sizes.group_size
    limit = decode_limit(sizes.shape, peak, num_sequences, sizes.prompt_tokens + sizes.response_tokens // 2)
    print_table(
        f"{sizes.shape.name} with random weights, {sizes.num_prompts} prompts x {sizes.group_size} responses of "
        f"{sizes.prompt_tokens} + {sizes.response_tokens} tokens; a step's: {sizes.step_prompt_tokens} + "
        f"{sizes.step_response_tokens}",
        ("engine", "tokens/s", "decoding", "of limit", "prefill s", "sync ms", "step s", "step tokens/s", "spread"),
        [
            [r["engine"], r["tokens_per_s"], r["decode_tokens_per_s"], f"{r['decode_tokens_per_s'] / limit:.1%}",
             r["prefill_s"], 1e3 * r["sync_s"], r["step_s"], r["step_tokens_per_s"], f"{r['spread_frac']:.0%}"]
            for r in rows
        ],
    )  # fmt: skip
    for row in rows:
        print(f"a step with {row['engine']}: " + ", ".join(f"{k} {v:.3g}" for k, v in row["phases"].items()))
    print(f"decoding limit {limit:,.0f} tokens/s: weights, keys and values once for every token of all sequences")
    by_engine = {row["engine"]: row for row in rows}
    ours, theirs = (by_engine.get(name) for name in ENGINES)
    if not quick and rows:
        results = {"rows": rows, "limit_tokens_per_s": limit, "peak": peak.as_dict(), "sizes": asdict(sizes)}
        print(write_results("rollout_vllm", device, _headline(ours, theirs, limit, sizes), results))
    if ours and theirs:
        ratio = theirs["decode_tokens_per_s"] / ours["decode_tokens_per_s"]
        print(f"vLLM over the built-in engine, decoding: {ratio:.3g}")


def _headline(
    ours: dict[str, Any] | None, theirs: dict[str, Any] | None, limit: float, sizes: Sizes
) -> list[list[str]]:
    """The headline: vLLM's figures beside those of the built-in engine."""
    if theirs is None:
        return [[f"decoding by vLLM, {sizes.shape.name}", "failed", f"limit {limit:,.0f}"]]
    beside = f", built-in {ours['decode_tokens_per_s']:,.0f}" if ours else ""
    return [
        [
            f"decoding by vLLM, {sizes.shape.name}",
            f"{theirs['decode_tokens_per_s']:,.0f} tokens/s",
            f"limit {limit:,.0f}{beside}",
        ],
        [
            f"a step with vLLM, {sizes.shape.name}",
            f"{theirs['step_s']:.3g} s, sync {1e3 * theirs['sync_s']:.3g} ms",
            f"built-in {ours['step_s']:.3g} s" if ours else "",
        ],
    ]
