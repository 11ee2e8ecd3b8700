"""A verifier model, for the responses that the rule rejected: CompassVerifier, as JustRL asks it."""

from collections.abc import Callable
from typing import Any

import torch

from fastgrpo.evaluation.folder import EvaluationFolder, Key, RowFile
from fastgrpo.evaluation.plan import Plan, Planned
from fastgrpo.evaluation.progress import StageProgress
from fastgrpo.evaluation.sampler import (
    PREFILLED_TOGETHER,
    Asked,
    Drawn,
    check_fits,
    draw,
    num_positions,
    prompt_ids,
    read_tokenizer,
    stop_token_ids,
)
from fastgrpo.evaluation.settings import Settings
from fastgrpo.evaluation.verdicts import rejected
from fastgrpo.rewards import compass_accepts, compass_prompt
from fastgrpo.rewards.compass import MAX_REPLY_TOKENS
from fastgrpo.types import Sampling

TOO_LONG = "too_long"
"""Failure of a response that, with what is asked about it, leaves the verifier model no room to answer."""


def judge_by_model(
    settings: Settings, plan: Plan, folder: EvaluationFolder, device: torch.device, check: Callable[[], None]
) -> None:
    """Asks about every response that the rule rejected. A verdict is written as soon as its reply has ended."""
    waiting = {b.name: rejected(folder, b.name) for b in plan.benchmarks}
    count = sum(map(len, waiting.values()))
    if not count:
        return
    tokenizer = read_tokenizer(settings, settings.verifier_model)
    sampling = Sampling(
        group_size=PREFILLED_TOGETHER,
        max_response_tokens=MAX_REPLY_TOKENS,
        temperature=0.0,
        stop_token_ids=stop_token_ids(settings.verifier_model, (), settings.trust_remote_code),
        seed=settings.seed,
    )
    room = num_positions(settings.verifier_model, settings.trust_remote_code) - MAX_REPLY_TOKENS
    asked: list[Asked] = []
    for planned in plan.benchmarks:
        keys, texts = _questions(settings, planned, folder, waiting[planned.name])
        if not texts:
            continue
        all_ids = prompt_ids(tokenizer, texts, chat_template=True)
        with RowFile(folder.verdicts(planned.name)) as file:
            for (problem, sample), ids in zip(keys, all_ids, strict=True):
                if len(ids) > room:
                    row = waiting[planned.name][problem, sample]
                    file.write([{**row, "model": False, "failure": TOO_LONG}])
                else:
                    asked.append(Asked(planned.name, problem, sample, ids, sampling))
    if not asked:
        return
    config = check_fits(settings, settings.verifier_model, tokenizer, asked)
    files = {b.name: RowFile(folder.verdicts(b.name)) for b in plan.benchmarks}
    with StageProgress(f"replies of {settings.verifier_model}", len(asked)) as progress:

        def take(drawn: Drawn) -> None:
            a = drawn.asked
            row: dict[str, Any] = waiting[a.benchmark][a.problem, a.sample]
            files[a.benchmark].write([{**row, "model": compass_accepts(drawn.text), "reply": drawn.text}])
            progress.advance()

        draw(settings, config, device, tokenizer, asked, take, check)


def _questions(
    settings: Settings, planned: Planned, folder: EvaluationFolder, waiting: dict[Key, Any]
) -> tuple[list[Key], list[str]]:
    problems = {p.problem: p for p in planned.benchmark.problems}
    drawn = folder.drawn(planned.name)
    keys, texts = sorted(waiting), []
    for key in keys:
        problem = problems[key[0]]
        question = "" if settings.compass_without_question else problem.text
        texts.append(compass_prompt(question, problem.answer, drawn[key]["text"]))
    return keys, texts
