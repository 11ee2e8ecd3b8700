"""A run that never ran: plausible curves and rollouts, written as training writes them."""

import json
import math
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

Record = dict[str, Any]
PUBLISHED = {
    "source": "JustRL, arXiv 2512.16649, figure 2",
    "bands": {"entropy": [1.2, 1.4], "reward": [-0.6, 0.4], "response_length": [4000, 8000]},
    "total_tokens": 1.4e11,
    "total_tokens_source": "table 4",
}
CONFIG = {
    "name": "justrl",
    "steps": 4380,
    "seed": 1,
    "rollout.temperature": 1.0,
    "rollout.max_response_tokens": 15360,
    "rollout.group_size": 8,
    "reward.correct": 1.0,
    "reward.wrong": -1.0,
    "evaluation.samples_per_prompt": 8,
    "evaluation.temperature": 1.0,
    "optimizer.betas": [0.9, 0.999],
    "optimizer.learning_rate": 1e-6,
}


@pytest.fixture
def fake_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run folder and returns it; the arguments are `write_run`'s."""
    return lambda **options: write_run(tmp_path / "runs" / "fake", **options)


def write_run(
    folder: Path,
    num_steps: int = 120,
    rollouts: Iterable[Record] | None = None,
    finished: bool = True,
    published: Record = PUBLISHED,
) -> Path:
    folder.mkdir(parents=True)
    noise = random.Random(0)
    metrics = [_step(step, num_steps, noise) for step in range(num_steps + 1)]
    kept = _rollouts(num_steps, noise) if rollouts is None else rollouts
    about = {
        "name": "justrl-1.5b",
        "recipe": "recipes/justrl_deepseek_1_5b.py",
        "model": "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
        "device": "cuda (NVIDIA H200)",
        "num_ranks": 8,
        "config": CONFIG,
        "published": published,
    }
    (folder / "run.json").write_text(json.dumps(about))
    write_lines(folder / "metrics.jsonl", metrics)
    write_lines(folder / "rollouts.jsonl", kept)
    if finished:
        (folder / "summary.json").write_text(json.dumps(_summary(metrics)))
    return folder


def write_lines(path: Path, records: Iterable[Record]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def _step(step: int, num_steps: int, noise: random.Random) -> Record:
    done = step / num_steps
    learned = 1 - math.exp(-3 * done)
    held_out = {"held_out_accuracy": 0.28 + 0.3 * learned, "held_out_greedy": 0.29 + 0.27 * learned}
    if step == 0:
        return {"step": 0, **held_out}
    length = 8000 - 3600 * learned + noise.gauss(0, 180)
    rollout_s, update_s = length * 256 * 8 / 60000, length * 256 * 8 / 95000
    step_s = 1.29 * (rollout_s + update_s) + 4
    return {
        "step": step,
        "reward": -0.62 + 1.02 * learned + noise.gauss(0, 0.05),
        "reward_std": 0.8,
        "response_length": length,
        "truncated_frac": max(0, 0.22 * (1 - learned) + noise.gauss(0.02, 0.01)),
        "entropy": 1.02 + 0.28 * learned + 0.06 * math.sin(9 * done) + noise.gauss(0, 0.025),
        "clip_frac": abs(noise.gauss(0.0021, 0.0004)),
        "staleness_mean": 0.7,
        "staleness_max": 1,
        "groups_kept": 250,
        "groups_dropped_all_right": 4,
        "groups_dropped_all_wrong": 2,
        "engine_busy_s": 100.0,
        "grad_norm": abs(noise.gauss(0.12, 0.02)) + (0.5 if noise.random() < 0.01 else 0),
        "learning_rate": 1e-6 * min(1, step / 10),
        "rollout_kl": abs(noise.gauss(0.0006, 0.0001)),
        "logprob_diff_p99": 0.06,
        "logprob_diff_above_001_frac": abs(noise.gauss(0.031, 0.002)),
        "zero_advantage_frac": 0.35 + 0.2 * learned + noise.gauss(0, 0.03),
        "tokens_per_s": length * 2048 / step_s * noise.gauss(1, 0.03),
        "total_tokens": 2048 * step * (8000 - 2400 * done),
        "step_s": step_s,
        "rollout_s": rollout_s,
        "reward_s": 1.5,
        "old_logprobs_s": 0.25 * update_s,
        "update_s": update_s,
        "sync_s": 0.05,
        "skipped_updates": 0,
        "verifier_failures": int(noise.random() < 0.02),
        **(held_out if step % max(1, num_steps // 10) == 0 else {"held_out_accuracy": None, "held_out_greedy": None}),
    }


def _rollouts(num_steps: int, noise: random.Random) -> Iterable[Record]:
    for step in range(1, num_steps + 1):
        for _ in range(8):
            a, b = noise.randint(12, 99), noise.randint(12, 99)
            right = noise.random() < 0.2 + 0.5 * step / num_steps
            yield rollout(step, a, b, right, num_sums=noise.randint(1, 40))


def rollout(step: int, a: int, b: int, right: bool, num_sums: int = 3) -> Record:
    thoughts = [
        f"Write {a} · {b} as {a} · {b - i} + {a} · {i} = {a * (b - i)} + {a * i}." for i in range(1, num_sums + 1)
    ]
    said = a * b if right else a * b - 10
    return {
        "step": step,
        "prompt": f"Let a = {a} and b = {b}. What is the product a · b?\n\nPlease reason step by step, and put your "
        "final answer within \\boxed{}.",
        "response": "<think>\n" + "\n".join(thoughts) + f"\n</think>\n\nThe product is \\boxed{{{said}}}.",
        "answer": str(a * b),
        "reward": 1.0 if right else -1.0,
        "advantage": 0.73 if right else -1.37,
        "num_response_tokens": 30 * num_sums + 25,
        "finish_reason": "stop" if num_sums < 38 else "length",
    }


def _summary(metrics: list[Record]) -> Record:
    seconds = sum(record.get("step_s", 0) for record in metrics)
    return {
        "accuracy_before": metrics[0]["held_out_accuracy"],
        "accuracy_after": metrics[-1]["held_out_accuracy"],
        "greedy_before": metrics[0]["held_out_greedy"],
        "greedy_after": metrics[-1]["held_out_greedy"],
        "train_s": seconds,
        "tokens_per_s": metrics[-1]["total_tokens"] / seconds,
        "steps": len(metrics) - 1,
        "seed": 1,
    }
