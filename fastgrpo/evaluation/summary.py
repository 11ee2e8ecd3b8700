"""All figures of one evaluation, computed once for its tables and its page."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastgrpo.evaluation.majority import majority_at_k, vote_of
from fastgrpo.evaluation.records import BenchmarkResults, Evaluation
from fastgrpo.evaluation.statistics import Estimate, avg_at_k, estimates, pass_at_k
from fastgrpo.evaluation.text_metrics import TextMetrics, text_metrics


@dataclass(frozen=True)
class Accuracies:
    """Shares between 0 and 1 with their intervals; entry k - 1 of a list is for k samples."""

    avg: Estimate
    pass_at: list[Estimate]
    maj_at: list[Estimate]


@dataclass(frozen=True)
class BenchmarkSummary:
    name: str
    num_problems: int
    samples_per_problem: int
    accuracies: Accuracies
    always_right: int  # problems
    never_right: int  # problems
    text: TextMetrics
    protocol: Mapping[str, Any]

    @property
    def solved(self) -> tuple[int, int]:
        """(always right, never right) problems."""
        return self.always_right, self.never_right


@dataclass(frozen=True)
class Summary:
    """All figures of one evaluation.

    `average` is over benchmarks of equal weight, for every k that all of them have; None for a single benchmark.
    """

    name: str
    about: Mapping[str, Any]
    benchmarks: list[BenchmarkSummary]
    average: Accuracies | None
    behaviours: Mapping[str, Any]  # behaviours.json: the judge and its ratios by benchmark; empty if not asked for


def summarize(evaluation: Evaluation) -> Summary:
    """The figures. Raises ValueError if a response or a verdict is missing."""
    columns = {part.name: accuracy_columns(part) for part in evaluation.benchmarks}
    return Summary(
        name=str(evaluation.about.get("name") or evaluation.folder.resolve().name),
        about=evaluation.about,
        benchmarks=[_summarize(part, columns[part.name], evaluation.about) for part in evaluation.benchmarks],
        average=_accuracies(columns) if len(columns) > 1 else None,
        behaviours=_behaviours(evaluation.folder / "behaviours.json"),
    )


def accuracy_columns(part: BenchmarkResults) -> np.ndarray:  # [P, 1 + 2n]
    """The values of each problem: avg@n, then pass@1..n, then maj@1..n."""
    outcomes = part.outcomes()
    by_problem: dict[int, list[str | None]] = {problem.problem: [] for problem in part.problems}
    for one in part.judged:
        by_problem[one.problem].append(vote_of(one.text))
    majorities = [majority_at_k(votes, row) for votes, row in zip(by_problem.values(), outcomes, strict=True)]
    return np.column_stack([avg_at_k(outcomes), pass_at_k(outcomes), np.array(majorities)])


def protocol_of(about: Mapping[str, Any], benchmark: str) -> Mapping[str, Any]:
    """The protocol of a benchmark in evaluation.json: temperature, top_p, max_response_tokens, samples and more."""
    protocol: Mapping[str, Any] = about["benchmarks"][benchmark]
    return protocol


def _behaviours(path: Path) -> Mapping[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _summarize(part: BenchmarkResults, columns: np.ndarray, about: Mapping[str, Any]) -> BenchmarkSummary:
    right = columns[:, 0]
    return BenchmarkSummary(
        name=part.name,
        num_problems=len(columns),
        samples_per_problem=_num_samples(columns),
        accuracies=_accuracies({part.name: columns}),
        always_right=int(np.count_nonzero(right == 1)),
        never_right=int(np.count_nonzero(right == 0)),
        text=text_metrics(part.judged),
        protocol=protocol_of(about, part.name),
    )


def _accuracies(columns: Mapping[str, np.ndarray]) -> Accuracies:
    """The accuracies of one benchmark, or the average of several for every k that all of them have."""
    most = min(map(_num_samples, columns.values()))
    common = {
        name: np.column_stack([c[:, 0], c[:, 1 : 1 + most], c[:, 1 + _num_samples(c) :][:, :most]])
        for name, c in columns.items()
    }
    avg, *rest = estimates(common)
    return Accuracies(avg, rest[:most], rest[most:])


def _num_samples(columns: np.ndarray) -> int:
    return (columns.shape[1] - 1) // 2
