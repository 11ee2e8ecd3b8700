"""Four cognitive behaviours in responses, judged by a model behind any server that speaks OpenAI's chat protocol.

Backtracking, verification and subgoal setting are defined by Gandhi et al. (arXiv 2503.01307), enumeration, in place of
their backward chaining, by SimpleRL-Zoo (arXiv 2503.18892, section 2.4 and appendix). The prompt is our own.
"""

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from fastgrpo.evaluation.chat_server import ChatServer, Refusal
from fastgrpo.evaluation.folder import EvaluationFolder, RowFile
from fastgrpo.evaluation.plan import Plan
from fastgrpo.evaluation.progress import StageProgress
from fastgrpo.evaluation.records import read_rows
from fastgrpo.evaluation.settings import Settings
from fastgrpo.json_lines import write_json

BEHAVIOURS = ("backtracking", "verification", "subgoal_setting", "enumeration")
PROMPT = """You will read a mathematics problem and a worked response to it. Say which of four behaviours the response
shows. What counts is that the behaviour is there in the response, not that it led to a right answer.

backtracking: the response finds that something it did or tried is wrong or leads nowhere, gives it up, and takes
another way.
verification: the response checks a result that it has, intermediate or final, for instance by putting it back into the
problem, by computing it a second time in another way, or by testing it on an example.
subgoal_setting: the response divides the problem into smaller goals on the way to the answer, and works on them one by
one.
enumeration: the response goes through several cases or candidates, one after the other, to find or to exclude answers.

<problem>
{problem}
</problem>

<response>
{response}
</response>

Answer with one JSON object and nothing else, in this form:
{{"backtracking": false, "verification": false, "subgoal_setting": false, "enumeration": false}}"""
ATTEMPTS = 3
"""Unreadable replies after which a response is left out."""
POLL_S = 0.5
MAX_FIRST_REFUSALS = 3
"""If the server refuses this many requests before it answers one, it is taken to refuse all."""


@dataclass(frozen=True)
class JudgeRequest:
    """The question about one response."""

    benchmark: str
    problem: int
    sample: int
    prompt: str


def judge_behaviours(settings: Settings, plan: Plan, folder: EvaluationFolder, check: Callable[[], None]) -> None:
    """Asks about the responses that this judge has not judged yet.

    Each judgement is written to ``behaviours.jsonl`` as it comes, and the ratios to ``behaviours.json`` at the end.
    Raises ValueError for a server that refuses, OSError for one that does not answer.
    """
    path = folder.path / "behaviours.jsonl"
    done = {_key(row) for row in read_rows(path) if row["judge"] == settings.behaviours_model}
    requests = [r for r in _requests(settings, plan, folder) if (r.benchmark, r.problem, r.sample) not in done]
    server = ChatServer.of(settings)
    refused: list[dict[str, Any]] = []  # kept here until the server has answered once: it may refuse all
    has_answered = False
    with (
        RowFile(path) as file,
        StageProgress("behaviours", len(done) + len(requests), len(done)) as progress,
        ThreadPoolExecutor(settings.behaviours_concurrency) as threads,
    ):
        try:
            for request, verdict in _answers(threads, server, requests, settings.behaviours_concurrency, check):
                row = _row(request, verdict, settings.behaviours_model)
                has_answered = has_answered or not isinstance(verdict, Refusal)
                if has_answered:
                    file.write([*refused, row])
                    refused.clear()
                else:
                    refused.append(row)
                if len(refused) >= MAX_FIRST_REFUSALS:
                    raise ValueError(f"{settings.behaviours} refuses: {verdict}")
                progress.advance()
            file.write(refused)
        finally:
            threads.shutdown(cancel_futures=True)
    write_json(folder.path / "behaviours.json", ratios(path, settings.behaviours_model))


def _answers(
    threads: ThreadPoolExecutor, server: ChatServer, requests: list[JudgeRequest], count: int, check: Callable[[], None]
) -> Iterator[tuple[JudgeRequest, "dict[str, bool] | Refusal"]]:
    """Each request with its judgement as it comes; ``count`` of them are under way at a time."""
    waiting = iter(requests)
    running: dict[Future[dict[str, bool] | Refusal], JudgeRequest] = {}
    while True:
        for request in islice(waiting, count - len(running)):
            running[threads.submit(ask, server, request.prompt)] = request
        if not running:
            return
        for future in wait(running, POLL_S, FIRST_COMPLETED).done:
            yield running.pop(future), future.result()
        check()


def ask(server: ChatServer, prompt: str) -> "dict[str, bool] | Refusal":
    """The four judgements; a Refusal if the server refuses the prompt, or its replies cannot be read."""
    reply = ""
    for attempt in range(ATTEMPTS):
        # The first try is greedy; later ones are not, for they must be able to give another reply.
        answer = server.chat(prompt, temperature=0.0 if attempt == 0 else 0.7, seed=attempt)
        if isinstance(answer, Refusal):
            return answer
        reply = answer
        if (verdict := parse_reply(reply)) is not None:
            return verdict
    return Refusal(f"no judgement in {ATTEMPTS} replies, the last: {reply[-200:]!r}")


def parse_reply(reply: str) -> dict[str, bool] | None:
    """The last JSON object with the four behaviours, each true or false; None if there is none."""
    for match in reversed(list(re.finditer(r"\{[^{}]*\}", reply))):
        try:
            found = json.loads(match[0])
        except ValueError:
            continue
        if all(isinstance(found.get(name), bool) for name in BEHAVIOURS):
            return {name: found[name] for name in BEHAVIOURS}
    return None


def _requests(settings: Settings, plan: Plan, folder: EvaluationFolder) -> Iterator[JudgeRequest]:
    for planned in plan.benchmarks:
        problems = {p.problem: p.text for p in planned.benchmark.problems}
        for (problem, sample), row in sorted(folder.drawn(planned.name).items()):
            if not settings.behaviours_samples or sample < settings.behaviours_samples:
                prompt = PROMPT.format(problem=problems[problem], response=row["text"])
                yield JudgeRequest(planned.name, problem, sample, prompt)


def _row(request: JudgeRequest, verdict: "dict[str, bool] | Refusal", judge: str) -> dict[str, Any]:
    place = {"benchmark": request.benchmark, "problem": request.problem, "sample": request.sample, "judge": judge}
    if isinstance(verdict, Refusal):
        return {**place, **dict.fromkeys(BEHAVIOURS), "failure": str(verdict)}
    return {**place, **verdict, "failure": ""}


def _key(row: dict[str, Any]) -> tuple[str, int, int]:
    return row["benchmark"], row["problem"], row["sample"]


def ratios(path: Path, judge: str) -> dict[str, Any]:
    """For each benchmark the number of judged responses, of those left out, and the share that shows each behaviour."""
    by_benchmark: dict[str, list[dict[str, Any]]] = {}
    for row in read_rows(path):
        if row["judge"] == judge:
            by_benchmark.setdefault(row["benchmark"], []).append(row)
    return {"judge": judge, "benchmarks": {name: _ratios(rows) for name, rows in by_benchmark.items()}}


def _ratios(rows: list[dict[str, Any]]) -> dict[str, float | int | None]:
    judged = [row for row in rows if not row["failure"]]
    shares = {name: sum(row[name] for row in judged) / len(judged) if judged else None for name in BEHAVIOURS}
    return {"num_judged": len(judged), "num_left_out": len(rows) - len(judged), **shares}
