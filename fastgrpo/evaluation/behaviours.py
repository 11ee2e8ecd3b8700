"""Four cognitive behaviours in responses, judged by a model behind any server that speaks OpenAI's chat protocol.

Backtracking, verification and subgoal setting are defined by Gandhi et al. (arXiv 2503.01307), enumeration, in place of
their backward chaining, by SimpleRL-Zoo (arXiv 2503.18892, section 2.4 and appendix). The words that ask are our own.
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
"""Replies that may be unreadable before a response is left out."""
LOOK_S = 0.5
NONE_ANSWERED = 3
"""Requests at the start that the server may refuse before it is taken to refuse all."""


@dataclass(frozen=True)
class Asked:
    benchmark: str
    problem: int
    sample: int
    words: str


def judge_behaviours(settings: Settings, plan: Plan, folder: EvaluationFolder, check: Callable[[], None]) -> None:
    """Asks about the responses that have no judgement by this judge yet, and writes each as it comes into
    ``behaviours.jsonl``; the ratios go into ``behaviours.json``.

    Raises ValueError for a server that refuses, OSError for one that does not answer.
    """
    path = folder.path / "behaviours.jsonl"
    there = {_key(row) for row in read_rows(path) if row["judge"] == settings.behaviours_model}
    asked = [a for a in _requests(settings, plan, folder) if (a.benchmark, a.problem, a.sample) not in there]
    server = ChatServer.of(settings)
    refused: list[dict[str, Any]] = []  # until the server has answered something: it may refuse all
    has_answered = False
    with (
        RowFile(path) as file,
        StageProgress("behaviours", len(there) + len(asked), len(there)) as progress,
        ThreadPoolExecutor(settings.behaviours_concurrency) as threads,
    ):
        try:
            for one, verdict in _answers(threads, server, asked, settings.behaviours_concurrency, check):
                row = _row(one, verdict, settings.behaviours_model)
                has_answered = has_answered or not isinstance(verdict, Refusal)
                if has_answered:
                    file.write([*refused, row])
                    refused.clear()
                else:
                    refused.append(row)
                if len(refused) >= NONE_ANSWERED:
                    raise ValueError(f"{settings.behaviours} refuses: {verdict}")
                progress.advance()
            file.write(refused)
        finally:
            threads.shutdown(cancel_futures=True)
    write_json(folder.path / "behaviours.json", ratios(path, settings.behaviours_model))


def _answers(
    threads: ThreadPoolExecutor, server: ChatServer, asked: list[Asked], count: int, check: Callable[[], None]
) -> Iterator[tuple[Asked, "dict[str, bool] | Refusal"]]:
    """Each with its judgement as it comes, so many under way."""
    waiting = iter(asked)
    running: dict[Future[dict[str, bool] | Refusal], Asked] = {}
    while True:
        for one in islice(waiting, count - len(running)):
            running[threads.submit(ask, server, one.words)] = one
        if not running:
            return
        for future in wait(running, LOOK_S, FIRST_COMPLETED).done:
            yield running.pop(future), future.result()
        check()


def ask(server: ChatServer, words: str) -> "dict[str, bool] | Refusal":
    """The four judgements; a Refusal if the server will not read the words, or its replies cannot be read."""
    reply = ""
    for attempt in range(ATTEMPTS):
        # Greedy first: another try must be allowed to say something else.
        answer = server.chat(words, temperature=0.0 if attempt == 0 else 0.7, seed=attempt)
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


def _requests(settings: Settings, plan: Plan, folder: EvaluationFolder) -> Iterator[Asked]:
    for planned in plan.benchmarks:
        problems = {p.problem: p.text for p in planned.benchmark.problems}
        for (problem, sample), row in sorted(folder.drawn(planned.name).items()):
            if not settings.behaviours_samples or sample < settings.behaviours_samples:
                words = PROMPT.format(problem=problems[problem], response=row["text"])
                yield Asked(planned.name, problem, sample, words)


def _row(asked: Asked, verdict: "dict[str, bool] | Refusal", judge: str) -> dict[str, Any]:
    place = {"benchmark": asked.benchmark, "problem": asked.problem, "sample": asked.sample, "judge": judge}
    if isinstance(verdict, Refusal):
        return {**place, **dict.fromkeys(BEHAVIOURS), "failure": str(verdict)}
    return {**place, **verdict, "failure": ""}


def _key(row: dict[str, Any]) -> tuple[str, int, int]:
    return row["benchmark"], row["problem"], row["sample"]


def ratios(path: Path, judge: str) -> dict[str, Any]:
    """By benchmark: responses judged, those left out, and the share of the judged that show each behaviour."""
    by_benchmark: dict[str, list[dict[str, Any]]] = {}
    for row in read_rows(path):
        if row["judge"] == judge:
            by_benchmark.setdefault(row["benchmark"], []).append(row)
    return {"judge": judge, "benchmarks": {name: _ratios(rows) for name, rows in by_benchmark.items()}}


def _ratios(rows: list[dict[str, Any]]) -> dict[str, float | int | None]:
    judged = [row for row in rows if not row["failure"]]
    shares = {name: sum(row[name] for row in judged) / len(judged) if judged else None for name in BEHAVIOURS}
    return {"num_judged": len(judged), "num_left_out": len(rows) - len(judged), **shares}
