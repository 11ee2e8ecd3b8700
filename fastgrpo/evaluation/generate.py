"""Draws the responses that are missing, and writes each when it has ended."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from transformers import PreTrainedTokenizerBase

from fastgrpo.config import Config
from fastgrpo.data.identity import Identity, identity_of
from fastgrpo.data.stop_tokens import StopTokens, end_token_note
from fastgrpo.evaluation.folder import EvaluationFolder, RowFile
from fastgrpo.evaluation.plan import Plan, Planned
from fastgrpo.evaluation.progress import StageProgress
from fastgrpo.evaluation.sampler import (
    PREFILLED_TOGETHER,
    Asked,
    Drawn,
    check_fits,
    draw,
    noise_position,
    prompt_ids,
    prompt_of,
    read_tokenizer,
    stop_token_ids,
)
from fastgrpo.evaluation.settings import Settings
from fastgrpo.rollout.servers.served_model import ServedModel
from fastgrpo.types import Prompt, Sampling


@dataclass(frozen=True)
class Prepared:
    """All responses that a plan asks for, and the engine that can draw them."""

    tokenizer: PreTrainedTokenizerBase
    asked: list[Asked]
    config: Config

    @property
    def identities(self) -> dict[str, Identity]:
        """Which prompts a benchmark's problems have become, by its name."""
        prompts: dict[str, dict[int, Prompt]] = {}
        for a in self.asked:
            prompts.setdefault(a.benchmark, {})[a.problem] = prompt_of(a)
        return {name: identity_of(list(of.values())) for name, of in prompts.items()}


def prepare(settings: Settings, plan: Plan, say: Callable[[str], None] = lambda text: None) -> Prepared:
    """Reads tokenizer and prompts, and checks them against the model without loading its weights.

    What is odd about them is told to ``say``, once. Raises ValueError if the model cannot answer them.
    """
    tokenizer = read_tokenizer(settings, settings.model)
    notes: list[str] = []
    ends = stop_token_ids(settings.model, settings.stop_token_ids, settings.trust_remote_code)
    stops = StopTokens(ends, f"--stop_token_ids {' '.join(map(str, ends))}")  # which takes the place of the model's own
    asked = [a for planned in plan.benchmarks for a in _asked(settings, planned, tokenizer, stops, notes.append)]
    notes.append(end_token_note(tokenizer, stops))
    for note in dict.fromkeys(filter(None, notes)):
        say(note)
    return Prepared(tokenizer, asked, check_fits(settings, settings.model, tokenizer, asked, say))


def generate(
    settings: Settings,
    plan: Plan,
    folder: EvaluationFolder,
    prepared: Prepared,
    device: torch.device,
    check: Callable[[], None],
    rank: int | None = None,
) -> None:
    """Draws the responses that no file holds yet; with a ``rank``, its share of them, into files of its own.

    Every response is a line on disk as soon as it has ended. Raises OSError if it cannot be written, and as
    `fastgrpo.evaluation.sampler.draw` does.
    """
    missing = {planned.name: set(keys) for planned, keys in folder.missing(plan)}
    asked = [a for a in prepared.asked if (a.problem, a.sample) in missing[a.benchmark]]
    share = asked if rank is None else _share(asked, plan, rank, settings.ranks)
    if not share:
        return
    total = plan.num_responses
    with contextlib.ExitStack() as files:
        names = {a.benchmark for a in share}
        opened = {name: files.enter_context(RowFile(folder.generations(name, rank))) for name in names}
        progress = files.enter_context(StageProgress("responses", total, total - len(asked), quiet=rank is not None))

        def take(drawn: Drawn) -> None:
            opened[drawn.asked.benchmark].write([row_of(drawn)])
            progress.advance()

        serve = partial(_serve, prepared.config, folder) if settings.servers else None
        draw(prepared.config, device, prepared.tokenizer, share, take, check, serve)


def _serve(config: Config, folder: EvaluationFolder) -> ServedModel:
    """Goes on in the dtype in which servers have begun, and writes into the record which draw."""
    return ServedModel(config, folder.dtype_of_servers(), lambda server: folder.note_server(server.vllm, server.dtype))


def row_of(drawn: Drawn) -> dict[str, object]:
    return {
        "problem": drawn.asked.problem,
        "sample": drawn.asked.sample,
        "text": drawn.text,
        "num_tokens": drawn.num_tokens,
        "finish_reason": drawn.finish_reason,
    }


def _asked(
    settings: Settings,
    planned: Planned,
    tokenizer: PreTrainedTokenizerBase,
    stops: StopTokens,
    say: Callable[[str], None],
) -> list[Asked]:
    protocol = planned.protocol
    sampling = Sampling(
        group_size=PREFILLED_TOGETHER,
        max_response_tokens=protocol.max_response_tokens,
        temperature=protocol.temperature,
        top_p=protocol.top_p,
        stop_token_ids=stops.ids,
        seed=settings.seed,
    )
    texts = [protocol.template.replace("{problem}", p.text) for p in planned.benchmark.problems]
    ids = dict(
        zip(
            (p.problem for p in planned.benchmark.problems),
            prompt_ids(
                tokenizer, texts, protocol.chat_template, protocol.template, settings.special_tokens, stops, say
            ),
            strict=True,
        )
    )
    return [
        Asked(planned.name, problem, sample, noise_position(planned.name, problem), ids[problem], sampling)
        for problem, sample in planned.keys
    ]


def _share(asked: list[Asked], plan: Plan, rank: int, ranks: int) -> list[Asked]:
    """A rank's part: whole problems, so that an engine reads each prompt once for all of its samples.

    All problems are divided, not the missing ones, which change while other ranks draw.
    """
    problems = [(b.name, p.problem) for b in plan.benchmarks for p in b.benchmark.problems]
    mine = set(problems[rank::ranks])
    return [a for a in asked if (a.benchmark, a.problem) in mine]
