"""Peak memory of one update at 16,384 tokens: padded with logits, packed with logits, packed and chunked (ours)."""

import argparse
import json
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench.harness import (
    GIB,
    PeakMemory,
    Row,
    add_only,
    chosen,
    device_slug,
    exit_code,
    machine_facts,
    merged,
    print_table,
    read_results,
    run_worker,
    synchronize,
    write_results,
)
from bench.memory_model import VARIANTS, Case, Variant, predict, ratio
from bench.shapes import QWEN25_1_5B, SCALED_DOWN, Shape

NUM_TOKENS = 16384
SCALE_ON_CPU = 8  # an eighth of the tokens, of the chunk and of the prompt
UPDATES = 3
OURS: Variant = "packed_chunked"
ROWS = tuple((checkpointing, variant) for checkpointing in (True, False) for variant in VARIANTS)


def main(argv: Sequence[str]) -> int:
    """Measures each variant in a fresh process. Returns 1 if one could not be measured.

    It is a result, and no failure, if a plain variant does not fit on a GPU.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    device = torch.device(options.device)
    if options.worker:
        print(json.dumps(measure(options.worker, _case(device, options.worker_checkpointing), device)))
        return 0
    names = [row_name(variant, checkpointing) for checkpointing, variant in ROWS]
    wanted = chosen(parser, options.only, names)
    print(json.dumps(machine_facts(device)))
    kept = read_results("memory", device).get("measured", []) if options.only else []
    rows = merged([], [row | {"name": row_name(row["variant"], row["checkpointing"])} for row in kept], names)
    full = [_full_size_row(variant, checkpointing) for checkpointing, variant in ROWS]
    for checkpointing, variant in ROWS:
        if row_name(variant, checkpointing) in wanted:
            rows = merged(rows, [_measured_row(variant, checkpointing, device, options.timeout_s)], names)
            _write(rows, full, device)  # after each row, so that a later failure loses nothing
    _report(rows, full, device)
    print(_write(rows, full, device))
    return exit_code("memory", {row["name"]: _failure(row) for row in rows if row["name"] in wanted and _failed(row)})


def row_name(variant: Variant, checkpointing: bool) -> str:
    return f"{variant}, {'checkpointed' if checkpointing else 'all activations kept'}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench memory", description=__doc__)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--timeout_s", type=float, default=120.0, help="of one variant")
    add_only(parser)
    parser.add_argument("--worker", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--worker_checkpointing", action="store_true", help=argparse.SUPPRESS)
    return parser


def full_size(checkpointing: bool) -> Case:
    """Qwen2.5-1.5B, 16,384 tokens, bfloat16, with the project's default chunk."""
    from bench.synthetic import PROMPT_TOKENS, response_mix
    from fastgrpo.config import ModelConfig

    return Case(
        shape=QWEN25_1_5B,
        lengths=tuple(response_mix(NUM_TOKENS)),
        prompt_tokens=PROMPT_TOKENS,
        head_chunk_tokens=ModelConfig().head_chunk_tokens,
        checkpointing=checkpointing,
        itemsize=2,
        pads_for_attention=False,
    )


def scaled_down(checkpointing: bool, shape: Shape = SCALED_DOWN) -> Case:
    """The same mix of lengths in an eighth of the tokens, float32, on a model that a CPU updates in seconds."""
    from bench.synthetic import response_mix

    full = full_size(checkpointing)
    return replace(
        full,
        shape=shape,
        lengths=tuple(response_mix(NUM_TOKENS // SCALE_ON_CPU)),
        prompt_tokens=full.prompt_tokens // SCALE_ON_CPU,
        head_chunk_tokens=full.head_chunk_tokens // SCALE_ON_CPU,
        itemsize=4,
        pads_for_attention=True,
    )


def _case(device: torch.device, checkpointing: bool) -> Case:
    return full_size(checkpointing) if device.type == "cuda" else scaled_down(checkpointing)


def measure(variant: Variant, case: Case, device: torch.device) -> Row:
    """Peak GiB of forward and backward of one micro-batch, above the loaded model and in all.

    Also the seconds of the last update, and the norm of the gradient, which is the same for all variants. If memory is
    not enough, ``oom`` has the allocation that failed.
    """
    learner, update = _learner_and_update(variant, case, device)
    from fastgrpo.policy.optimizer import gradient_norm, local_gradients
    from fastgrpo.policy.token_sums import TokenSums

    norm, seconds = 0.0, 0.0

    def work() -> None:
        nonlocal norm
        learner.backward(update, TokenSums.zero(device))
        norm = float(gradient_norm(local_gradients(learner.parameters), learner.ranks.mesh))
        learner.optimizer.zero_grad()

    try:
        with PeakMemory(device) as peak:
            for _ in range(UPDATES if device.type == "cuda" else 1):
                started = time.perf_counter()
                work()
                synchronize(device)
                seconds = time.perf_counter() - started
    except (torch.OutOfMemoryError, MemoryError) as error:
        asked = re.search(r"allocate ([\d.]+ \w+)", str(error))
        return {"oom": asked.group(1) if asked else "out of memory"}
    weights = 4 * case.shape.num_parameters
    return {
        "above_weights_gib": peak.bytes / GIB,
        "peak_gib": (peak.bytes + weights) / GIB,
        "update_s": seconds,
        "gradient_norm": norm,
    }


def _learner_and_update(variant: Variant, case: Case, device: torch.device) -> tuple[Any, Any]:
    """The project's learner, after an update of a few tokens in which libraries load what they need."""
    from bench.plain_policies import PackedLogits, PaddedLogits
    from bench.synthetic import random_learner, random_sequences
    from fastgrpo.config import ModelConfig, ObjectiveConfig, OptimizerConfig, ParallelConfig
    from fastgrpo.policy.policy import Policy
    from fastgrpo.policy.token_sums import TokenSums
    from fastgrpo.ranks import Ranks, choose_device

    policy_class = {"padded_logits": PaddedLogits, "packed_logits": PackedLogits, "packed_chunked": Policy}[variant]
    # A plain policy gives logprobs; the fused head, which is a run's default, would bring an op of its own.
    objective = ObjectiveConfig() if variant == OURS else ObjectiveConfig(loss_path="logprobs")
    learner = random_learner(
        case.shape,
        Ranks.connect(choose_device(str(device)), ParallelConfig()),
        ModelConfig(
            attention="sdpa" if variant == "padded_logits" else "auto",
            activation_checkpointing=case.checkpointing,
            head_chunk_tokens=case.head_chunk_tokens,
        ),
        OptimizerConfig(tokens_per_microbatch=case.num_tokens, share_prompts=False),
        policy_class=policy_class,
        objective=objective,
    )
    warm_up = learner.pack(random_sequences(case.shape, [40, 24], 8))
    learner.backward(warm_up, TokenSums.zero(device))
    learner.optimizer.zero_grad()
    update = learner.pack(random_sequences(case.shape, case.lengths, case.prompt_tokens))
    assert len(update.batches) == 1
    return learner, update


def _measured_row(variant: Variant, checkpointing: bool, device: torch.device, timeout_s: float) -> Row:
    flags = ["--worker_checkpointing"] if checkpointing else []
    measured = run_worker(["memory", "--device", device.type, "--worker", variant, *flags], timeout_s)
    predicted = predict(_case(device, checkpointing), variant).as_gib()
    of = {"variant": variant, "checkpointing": checkpointing, "device": device.type}
    return {"name": row_name(variant, checkpointing), **of, **measured, "predicted": predicted}


def _full_size_row(variant: Variant, checkpointing: bool) -> Row:
    return {
        "variant": variant,
        "checkpointing": checkpointing,
        "predicted": predict(full_size(checkpointing), variant).as_gib(),
    }


def _sizes(case: Case) -> str:
    s = case.shape
    chunks = f"chunks of {case.head_chunk_tokens}" if case.head_chunk_tokens else "chunks as the op takes them"
    return (
        f"{s.name}: {s.num_layers} layers, D {s.width}, F {s.feed_forward}, V {s.vocabulary:,}, {s.num_parameters:,} "
        f"parameters; {case.num_tokens:,} tokens in sequences of {list(case.lengths)}, {case.num_padded_tokens:,} "
        f"padded to the longest; {chunks}; {'bfloat16' if case.itemsize == 2 else 'float32'}"
    )


def _report(rows: list[Row], full: list[Row], device: torch.device) -> None:
    case = _case(device, False)
    print(f"\nmeasured on {device_slug(device)}\n{_sizes(case)}")
    print_table(
        "peak of forward and backward of one micro-batch, GiB above the float32 weights",
        ("variant", "checkpointing", "measured", "by the formula", "measured / formula", "s", "gradient norm"),
        [_measured_line(row) for row in rows],
    )
    print(_sizes(full_size(False)))
    terms = ("weights", "gradients", "gathered", "saved_activations", "one_layer", "head", "peak")
    print_table(
        "full size by the same formula, GiB (gradients are complete when activations and logits are gone)",
        ("variant", "checkpointing", *terms, "of ours"),
        [_full_line(row, terms, full) for row in full],
    )
    print(f"AdamW's state is {full[0]['predicted']['optimizer_gib']:.1f} GiB besides, once, sharded over the ranks.")


def _write(rows: list[Row], full: list[Row], device: torch.device) -> Path:
    return write_results("memory", device, _headline(rows, full), {"measured": rows, "full_size_by_formula": full})


def _measured_line(row: Row) -> list[Any]:
    failure = _failure(row)
    measured, predicted = row.get("above_weights_gib"), row["predicted"]["above_weights_gib"]
    share = None if measured is None else measured / predicted
    return [
        row["variant"], row["checkpointing"], failure[:60] or measured, predicted, share,
        row.get("update_s"), row.get("gradient_norm"),
    ]  # fmt: skip


def _failure(row: Row) -> str:
    """The reason why there is no figure, or ""."""
    if "oom" in row:
        return f"OOM at {row['oom']}"
    return f"failed: {row['error'][:200]}" if "error" in row else ""


def _failed(row: Row) -> bool:
    fits_not = row["variant"] != OURS and row.get("device") == "cuda"
    return "error" in row or ("oom" in row and not fits_not)


def _full_line(row: Row, terms: Sequence[str], full: list[Row]) -> list[Any]:
    alike = [r for r in full if r["checkpointing"] == row["checkpointing"]]
    peaks = [r["predicted"]["peak_gib"] for r in alike]
    times = ratio(peaks)[alike.index(row)]
    return [row["variant"], row["checkpointing"], *(row["predicted"][f"{t}_gib"] for t in terms), f"{times:.2f}x"]


def _headline(rows: list[Row], full: list[Row]) -> list[list[str]]:
    lines: list[list[str]] = []
    for row in rows:
        value = f"{row['peak_gib']:.2f} GiB" if "peak_gib" in row else _failure(row)
        lines.append([row["name"], value, f"formula {row['predicted']['peak_gib']:.2f} GiB"])
    for row in full:
        if row["checkpointing"]:
            what = f"{row['variant']} at full size, checkpointed"
            lines.append([what, f"{row['predicted']['peak_gib']:.1f} GiB", "by formula"])
    return lines
