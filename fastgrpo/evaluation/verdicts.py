"""Responses -> right or wrong, by the suite's rule, in processes that can be killed."""

import os
from collections.abc import Callable, Iterator
from typing import Any

from fastgrpo.evaluation.folder import EvaluationFolder, Key, RowFile
from fastgrpo.evaluation.plan import Plan
from fastgrpo.evaluation.progress import StageProgress
from fastgrpo.evaluation.settings import Settings
from fastgrpo.rewards import VerifierPool
from fastgrpo.rewards.golds import first_rows, forms_for, try_golds

TRY_S = 20.0
CHUNK = 64
"""Responses for each worker before the verdicts are written and signals are checked."""


def judge_by_rule(settings: Settings, plan: Plan, folder: EvaluationFolder, check: Callable[[], None]) -> None:
    """Judges every response that has no verdict yet. Raises ValueError if the rule cannot be loaded."""
    waiting = {b.name: _waiting(folder, b.name) for b in plan.benchmarks}
    count = sum(map(len, waiting.values()))
    if not count:
        return
    with (
        start_pool(settings, settings.rule or plan.suite.rule) as pool,
        StageProgress("verdicts", plan.num_responses, plan.num_responses - count) as progress,
    ):
        for planned in plan.benchmarks:
            answers = {p.problem: p.answer for p in planned.benchmark.problems}
            with RowFile(folder.verdicts(planned.name)) as file:
                for rows in _chunks(waiting[planned.name], CHUNK * num_workers(settings)):
                    verdicts = pool.score([(row["text"], answers[row["problem"]]) for row in rows])
                    if all(v.failure == "raised" for v in verdicts):
                        raise ValueError(f"the rule raised an error on {len(rows)} of {len(rows)}: {pool.last_error}")
                    file.write(
                        _row(row, bool(v.correct), None, v.failure) for row, v in zip(rows, verdicts, strict=True)
                    )
                    progress.advance(len(rows))
                    check()


def unmet_golds(plan: Plan, rule: str, pool: VerifierPool) -> Iterator[str]:
    """A sentence for each benchmark with answers that the rule rejects even word for word."""
    if not (forms := forms_for(rule, None, pool)):
        return
    for planned in plan.benchmarks:
        row_of = first_rows((p.answer, p.problem) for p in planned.benchmark.problems)
        report = try_golds(pool, list(row_of), TRY_S / len(plan.benchmarks), forms)
        if words := report.unmet_words(planned.name, rule, row_of):
            yield words


def start_pool(settings: Settings, rule: str) -> VerifierPool:
    """The processes that judge by a rule. Raises ValueError if they do not start or fail the self-test."""
    try:
        return VerifierPool(
            rule,
            num_workers(settings),
            settings.verifier_timeout_s,
            settings.verifier_memory_gib,
        )
    except RuntimeError as error:
        raise ValueError(str(error)) from error


def num_workers(settings: Settings) -> int:
    return settings.verifier_workers or len(os.sched_getaffinity(0))


def _waiting(folder: EvaluationFolder, name: str) -> list[dict[str, Any]]:
    """The responses without a verdict, and those on which the verifier failed: it may have more time now."""
    judged = folder.judged(name)
    unjudged = {key for key, verdict in judged.items() if verdict["failure"] in ("timeout", "died", "raised")}
    return [row for key, row in sorted(folder.drawn(name).items()) if key not in judged or key in unjudged]


def _chunks(rows: list[dict[str, Any]], size: int) -> list[list[dict[str, Any]]]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def _row(row: dict[str, Any], rule: bool, model: bool | None, failure: str) -> dict[str, Any]:
    return {"problem": row["problem"], "sample": row["sample"], "rule": rule, "model": model, "failure": failure}


def rejected(folder: EvaluationFolder, name: str) -> dict[Key, dict[str, Any]]:
    """Verdict rows of the responses that the rule rejected and that no model has judged yet."""
    return {key: v for key, v in folder.judged(name).items() if not v["rule"] and v["model"] is None}
