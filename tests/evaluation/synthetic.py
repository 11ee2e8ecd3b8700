"""Evaluations that never ran: problems of seeded difficulty, responses with a verdict, in the folder's own form."""

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastgrpo.evaluation.records import BenchmarkResults, Evaluation, Judged, ProblemRow

JUSTRL = {"temperature": 0.7, "top_p": 0.9, "max_response_tokens": 31744, "template": None}


def outcomes_of(num_problems: int, num_samples: int, accuracy: float, seed: int = 0) -> np.ndarray:  # [P, n] bool
    """Problems as benchmarks have them: many almost always right, many almost always wrong."""
    generator = np.random.default_rng(seed)
    chances = generator.beta(max(accuracy, 1e-3) * 0.8, max(1 - accuracy, 1e-3) * 0.8, size=(num_problems, 1))
    return generator.random((num_problems, num_samples)) < chances


def benchmark(
    name: str, outcomes: np.ndarray, seed: int = 0, text: Callable[[int, int, bool], str] | None = None
) -> BenchmarkResults:
    noise = random.Random(seed)
    problems = [ProblemRow(p, f"What is {p} plus {p}?", str(2 * p)) for p in range(len(outcomes))]
    judged = []
    for p, row in enumerate(outcomes):
        for sample, right in enumerate(row):
            num_tokens = int(noise.lognormvariate(8.4 if right else 9.2, 0.5))
            cut = not right and num_tokens > 14000
            said = text(p, sample, bool(right)) if text else _text(p, bool(right), cut, noise)
            judged.append(Judged(p, sample, said, num_tokens, "length" if cut else "stop", bool(right)))
    return BenchmarkResults(name, problems, judged)


def evaluation(
    folder: Path,
    benchmarks: Mapping[str, tuple[int, int, float]],  # name -> problems, samples, accuracy
    seed: int = 0,
    protocol: Mapping[str, Any] = JUSTRL,
    **about: Any,
) -> Evaluation:
    parts = [
        benchmark(name, outcomes_of(problems, samples, accuracy, seed + i), seed)
        for i, (name, (problems, samples, accuracy)) in enumerate(benchmarks.items())
    ]
    return of(folder, parts, protocol, seed=seed, **about)


def of(folder: Path, parts: list[BenchmarkResults], protocol: Mapping[str, Any] = JUSTRL, **about: Any) -> Evaluation:
    """An evaluation of these benchmarks; its folder is made."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = {
        "name": folder.name,
        "model": f"models/{folder.name}",
        "suite": "justrl",
        "rule": "fastgrpo.rewards:mathd_or_sympy",
        "verifier_model": "",
        "seed": 0,
        "benchmarks": {
            part.name: {
                **protocol,
                "num_problems": len(part.problems),
                "samples_per_problem": len(part.judged) // len(part.problems),
            }
            for part in parts
        },
    }
    facts |= about
    (folder / "evaluation.json").write_text(json.dumps(facts))
    return Evaluation(folder, facts, parts)


def _text(problem: int, right: bool, cut: bool, noise: random.Random) -> str:
    thoughts = [f"Step {i}: the sum grows by {noise.randint(1, 99)}." for i in range(noise.randint(1, 12))]
    if not right:
        thoughts.append("Wait, let me recheck that.")
    said = 2 * problem if right else 2 * problem + noise.randint(1, 3)
    end = "" if cut else f"\nThe answer is \\boxed{{{said}}}."
    return "<think>\n" + "\n".join(thoughts) + "\n</think>" + end
