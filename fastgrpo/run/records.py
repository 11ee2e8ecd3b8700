"""What a run writes down besides its metrics: some rollouts of every step, and a summary at the end."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from fastgrpo.ranks import Ranks
from fastgrpo.trainer import Progress
from fastgrpo.types import Sample


def rollout_rows(samples: Sequence[Sample], step: int, count: int) -> list[dict[str, Any]]:
    """At most ``count`` rows for the report, chosen evenly from the samples that this rank judged."""
    judged_here = [s for s in samples if s.text is not None]
    places = np.linspace(0, len(judged_here) - 1, min(count, len(judged_here))).astype(int)
    return [
        {
            "step": step,
            "prompt": s.prompt.text,
            "response": s.text,
            "answer": s.prompt.answer,
            "correct": s.correct,
            "reward": s.reward,
            **({"parts": dict(s.parts)} if s.parts else {}),
            "advantage": s.advantage,
            "num_response_tokens": len(s.response),
            "finish_reason": s.response.finish_reason,
        }
        for s in (judged_here[place] for place in places)
    ]


def summary_of(progress: Progress, metrics: Iterable[dict[str, Any]], seed: int, ranks: Ranks) -> dict[str, Any]:
    """The figures of the whole run, from what it has written."""
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}
    for record in metrics:
        if record.get("held_out_accuracy") is not None:
            before, after = before or record, record
    scores = {"score_before": before.get("held_out_score"), "score_after": after.get("held_out_score")}
    return {
        "accuracy_before": progress.accuracy_before,
        "accuracy_after": after.get("held_out_accuracy"),
        "greedy_before": progress.greedy_before,
        "greedy_after": after.get("held_out_greedy"),
        **{name: score for name, score in scores.items() if score is not None},
        "train_s": progress.train_s,
        "tokens_per_s": progress.total_tokens / progress.train_s if progress.train_s else None,
        "steps": progress.step,
        "seed": seed,
        "total_tokens": progress.total_tokens,
        "updates": progress.updates,
        "skipped_updates": progress.skipped_updates,
        "verifier_failures": progress.verifier_failures,
        "num_ranks": ranks.count,
        "device": ranks.device_name,
    }
