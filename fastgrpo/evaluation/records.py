"""Reads the folder of an evaluation: problems, responses and verdicts.

- ``evaluation.json``: ``name, model, suite, seed, engine, rule, verifier_model, notes`` and more, and under
  ``benchmarks`` for each name its ``source, num_problems, samples_per_problem, temperature, top_p,
  max_response_tokens, template, chat_template``; where servers drew, under ``servers`` the versions of ``vllm`` and
  their ``dtype``;
- ``problems/<benchmark>.jsonl``: the problems;
- ``generations/<benchmark>.jsonl``, and ``<benchmark>.rank<k>.jsonl`` of several ranks: one line for each response;
- ``verdicts/<benchmark>.jsonl``: the verdicts; of several rows for one response the last counts.
"""

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fastgrpo.json_lines import read_json

MENDED = "Remove that line, and the same command makes it again"


@dataclass(frozen=True, slots=True)
class ProblemRow:
    problem: int  # place in the benchmark's file, from 0
    text: str  # without the words that the protocol's template puts around it
    answer: str


@dataclass(frozen=True, slots=True)
class Judged:
    """One response with its verdict."""

    problem: int
    sample: int
    text: str
    num_tokens: int
    finish_reason: Literal["stop", "length"]
    correct: bool


@dataclass(frozen=True)
class BenchmarkResults:
    """The problems of a benchmark and the responses that are judged."""

    name: str
    problems: list[ProblemRow]
    judged: list[Judged]  # by (problem, sample); every problem has the same number of samples when complete

    def outcomes(self) -> np.ndarray:  # [num_problems, n] bool
        """True for each right response. Raises ValueError if a response or a verdict is missing."""
        by_problem: dict[int, list[bool]] = {p.problem: [] for p in self.problems}
        for one in self.judged:
            by_problem[one.problem].append(one.correct)
        counts = {len(verdicts) for verdicts in by_problem.values()}
        if len(counts) != 1 or counts == {0}:
            raise ValueError(
                f"{self.name} is incomplete: its problems have {min(counts, default=0)} to {max(counts, default=0)} "
                "judged responses each. Run the same `fastgrpo evaluate` command again: it goes on where it stopped."
            )
        return np.array(list(by_problem.values()), dtype=bool)


@dataclass(frozen=True)
class Evaluation:
    """An evaluation as its folder has it."""

    folder: Path
    about: dict[str, Any]  # evaluation.json
    benchmarks: list[BenchmarkResults]


def read_evaluation(folder: Path) -> Evaluation:
    """Everything that is judged so far. Raises ValueError if there is no evaluation, or a file is broken."""
    if not (folder / "evaluation.json").is_file():
        raise ValueError(f"no evaluation in {folder}: it has no evaluation.json")
    about = read_json(folder / "evaluation.json")
    by_model = bool(about.get("verifier_model"))
    failures = [note for name in about["benchmarks"] if (note := _failures(folder, name))]
    about = {**about, "notes": [*about.get("notes", []), *failures]}
    return Evaluation(folder, about, [_read_benchmark(folder, name, by_model) for name in about["benchmarks"]])


def _failures(folder: Path, name: str) -> str:
    """A note about the responses that count as wrong because they could not be judged; empty if there are none."""
    last = {(v["problem"], v["sample"]): v["failure"] for v in read_rows(folder / "verdicts" / f"{name}.jsonl")}
    counts = Counter(failure for failure in last.values() if failure)
    listed = ", ".join(f"{count} {failure}" for failure, count in counts.items())
    return f"{name}: counted as wrong without a verdict: {listed}" if counts else ""


def _read_benchmark(folder: Path, name: str, by_model: bool) -> BenchmarkResults:
    """``by_model``: a response that the rule rejected counts as judged only when the verifier model has judged it."""
    problems = [ProblemRow(**row) for row in read_rows(folder / "problems" / f"{name}.jsonl")]
    verdicts = {(v["problem"], v["sample"]): v for v in read_rows(folder / "verdicts" / f"{name}.jsonl")}
    judged = []
    for row in read_generations(folder, name):
        verdict = verdicts.get((row["problem"], row["sample"]))
        if verdict is not None and (verdict["rule"] or verdict["model"] is not None or not by_model):
            judged.append(Judged(**row, correct=is_correct(verdict)))
    return BenchmarkResults(name, problems, sorted(judged, key=lambda j: (j.problem, j.sample)))


def read_generations(folder: Path, name: str) -> list[dict[str, Any]]:
    """Each response to a benchmark once, whichever rank drew it."""
    drawn: dict[tuple[int, int], dict[str, Any]] = {}
    for path in generation_files(folder, name):
        for row in read_rows(path):
            drawn.setdefault((row["problem"], row["sample"]), row)
    return list(drawn.values())


def generation_files(folder: Path, name: str) -> list[Path]:
    """The existing files of a benchmark's responses: the one of a single process, and those of the ranks."""
    ranks = re.compile(rf"{re.escape(name)}(\.rank\d+)?\.jsonl")
    folder = folder / "generations"
    return sorted(p for p in folder.iterdir() if ranks.fullmatch(p.name)) if folder.is_dir() else []


def is_correct(verdict: dict[str, Any]) -> bool:
    """Whether the rule accepts a response or, if not, the verifier model does."""
    return bool(verdict["rule"]) or verdict["model"] is True


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All whole rows, none if there is no file. A last line without its end, which a kill leaves, is left out. Raises
    ValueError, with the line, for what is no row."""
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}. {MENDED}") from error
        if not isinstance(row, dict) or not isinstance(row.get("problem"), int):
            raise ValueError(
                f"{path}, line {number} is no row of a problem: {line[:60].decode(errors='replace')}. {MENDED}"
            )
        rows.append(row)
    return rows
