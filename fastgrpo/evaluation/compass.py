"""The verifier model for the responses that the rule rejected: CompassVerifier, asked as JustRL asks it."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from fastgrpo.evaluation.folder import EvaluationFolder, Key, RowFile
from fastgrpo.evaluation.plan import Plan, Planned
from fastgrpo.evaluation.progress import StageProgress
from fastgrpo.evaluation.sampler import (
    NO_LIMIT,
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

SHORT_REPLY_TOKENS = 16
"""Limit of a reply where the full limit does not fit after a long response: only a single letter counts as a reply."""
TOO_LONG = "too_long"
"""Failure of a response whose question is longer than the verifier model can read."""


def judge_by_model(
    settings: Settings, plan: Plan, folder: EvaluationFolder, device: torch.device, check: Callable[[], None]
) -> None:
    """Asks about every response that the rule rejected, and writes each verdict as soon as its reply has ended.

    A response that is too long for the model stays wrong.
    """
    waiting = {b.name: rejected(folder, b.name) for b in plan.benchmarks}
    if not any(waiting.values()):
        return
    tokenizer = read_tokenizer(settings, settings.verifier_model)
    with contextlib.ExitStack() as files:
        opened = {b.name: files.enter_context(RowFile(folder.verdicts(b.name))) for b in plan.benchmarks}

        def conclude(asked: Asked, accepted: bool, **more: str) -> None:
            row = waiting[asked.benchmark][asked.problem, asked.sample]
            opened[asked.benchmark].write([{**row, "model": accepted, **more}])

        readable = []
        for asked in _requests(settings, plan, folder, waiting, tokenizer):
            if asked.sampling.max_response_tokens:
                readable.append(asked)
            else:
                conclude(asked, False, failure=TOO_LONG)
        if not readable:
            return
        config = check_fits(settings, settings.verifier_model, tokenizer, readable)
        progress = files.enter_context(StageProgress(f"replies of {settings.verifier_model}", len(readable)))

        def take(drawn: Drawn) -> None:
            conclude(drawn.asked, compass_accepts(drawn.text), reply=drawn.text)
            progress.advance()

        draw(config, device, tokenizer, readable, take, check)


def _requests(
    settings: Settings,
    plan: Plan,
    folder: EvaluationFolder,
    waiting: dict[str, dict[Key, Any]],
    tokenizer: PreTrainedTokenizerBase,
) -> Iterator[Asked]:
    """One request for each rejected response; it asks for no token where the prompt is too long for the model.

    The replies are greedy (thunlp/JustRL: evals/grade.py, sampling_params).
    """
    model = settings.verifier_model
    positions = NO_LIMIT if settings.extrapolate else num_positions(model, settings.trust_remote_code)
    positions_of_prompts = itertools.count()  # each response is a prompt of its own
    stop_ids = stop_token_ids(model, (), settings.trust_remote_code)
    for planned in plan.benchmarks:
        if not (keys := sorted(waiting[planned.name])):
            continue
        prompts = _prompts(settings, planned, folder, keys)
        for (problem, sample), ids in zip(keys, prompt_ids(tokenizer, prompts, chat_template=True), strict=True):
            most = _reply_tokens(positions - len(ids))
            sampling = Sampling(PREFILLED_TOGETHER, most, 0.0, stop_ids, settings.seed)
            yield Asked(planned.name, problem, sample, next(positions_of_prompts), ids, sampling)


def _reply_tokens(room: int) -> int:
    return next((most for most in (MAX_REPLY_TOKENS, SHORT_REPLY_TOKENS) if most <= room), 0)


def _prompts(settings: Settings, planned: Planned, folder: EvaluationFolder, keys: list[Key]) -> list[str]:
    problems = {p.problem: p for p in planned.benchmark.problems}
    drawn = folder.drawn(planned.name)
    prompts = []
    for key in keys:
        problem = problems[key[0]]
        question = "" if settings.compass_without_question else problem.text
        prompts.append(compass_prompt(question, problem.answer, drawn[key]["text"]))
    return prompts
