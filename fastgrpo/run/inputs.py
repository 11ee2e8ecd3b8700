"""What a run starts from, checked before any weight is loaded."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from fastgrpo.algorithm import ProblemText
from fastgrpo.config import Config, DataConfig
from fastgrpo.data import encode, held_out_prompts, load_problems, load_tokenizer, with_columns
from fastgrpo.data.stop_tokens import StopTokens, end_token_note, require_ends
from fastgrpo.data.tokenizer import num_rows_needed, require_rows
from fastgrpo.models.config_file import end_token_ids, num_rows
from fastgrpo.models.load import attention_of, check_model, find_model, shapes_of
from fastgrpo.models.routers import routers_of
from fastgrpo.run.checkpoint import require_space
from fastgrpo.run.display import Display
from fastgrpo.run.hub import require_inputs
from fastgrpo.types import Prompt


@dataclass(frozen=True)
class Inputs:
    tokenizer: PreTrainedTokenizerBase
    train: list[list[Prompt]]  # of every phase of the run
    held_out: list[Prompt]

    def by_source(self, configs: list[Config]) -> dict[str, list[Prompt]]:
        """The problems of each place that the settings name, those of all phases together."""
        sources = [*(c.data.train for c in configs), configs[0].data.held_out]
        found: dict[str, list[Prompt]] = {}
        for source, prompts in zip(sources, [*self.train, self.held_out], strict=True):
            found[source] = [*found.get(source, ()), *prompts]
        return found

    def with_columns(self, configs: list[Config]) -> "Inputs":
        """The same with every column of the prompts' rows."""
        found: dict[int, list[Prompt]] = {}  # phases may share their prompts
        for config, prompts in zip(configs, self.train, strict=True):
            found[id(prompts)] = found.get(id(prompts)) or with_columns(prompts, config.data.train)
        held_out = with_columns(self.held_out, configs[0].data.held_out) if self.held_out else []
        return replace(self, train=[found[id(prompts)] for prompts in self.train], held_out=held_out)


def load_inputs(
    configs: list[Config],  # of every phase of the run
    problem_text: ProblemText | None,
    display: Display,
    device: torch.device,
    dtype: torch.dtype,
    need_answers: bool,
) -> Inputs:
    """Tokenizer and problems, checked before any weight is loaded."""
    config = configs[0]
    find_model(config.model.path)
    require_inputs(configs)
    tokenizer = load_tokenizer(config.model.path, config.model.trust_remote_code)
    say = cache(display.say)  # a line about the tokenizer holds for all data
    longest = max(c.data.max_prompt_tokens + c.rollout.max_response_tokens for c in configs)
    copies = 2 if any(c.objective.kl_coef > 0 for c in configs) else 1
    require_space(Path(config.run_dir), check_model(config.model, num_rows_needed(tokenizer), longest), dtype, copies)
    attention_of(config.model, device, dtype)
    if any(c.objective.router_aux_coef for c in configs):
        routers_of(shapes_of(config.model))
    rows = num_rows(config.model.path, config.model.trust_remote_code)
    stops = checked_stops(config, tokenizer, rows, say)

    def load(data: DataConfig, source: str, problem_text: ProblemText | None) -> list[Prompt]:
        prompts = load_prompts(data, source, problem_text, tokenizer, stops, say, need_answers)
        require_rows(prompts, rows, tokenizer)
        return prompts

    loaded: list[tuple[DataConfig, list[Prompt]]] = []
    for data in (c.data for c in configs):
        same = next((e for d, e in loaded if replace(d, prompts_per_step=data.prompts_per_step) == data), None)
        loaded.append((data, same or load(data, data.train, problem_text)))
    held_out = []
    if config.data.held_out:  # problems as they stand, whatever training makes of them
        encoded = load(config.data, config.data.held_out, None)
        held_out = held_out_prompts(encoded, config.evaluation.max_problems)
        asked = {p.text for p in held_out}
        if trained_on := asked.intersection(p.text for _, prompts in loaded for p in prompts):
            say(
                f"warning: {len(trained_on)} of the {len(asked)} held-out problems of {config.data.held_out} are also "
                f"trained on: accuracy on them shows what was memorised"
            )
    return Inputs(tokenizer, [encoded for _, encoded in loaded], held_out)


def stop_token_ids(config: Config) -> tuple[int, ...]:
    """What ends a response: the end tokens of the model's generation settings and the recipe's; nothing where the run
    has all responses as long as they may be."""
    if config.rollout.ignore_eos:
        return ()
    ends = end_token_ids(config.model.path, config.model.trust_remote_code)
    return tuple(dict.fromkeys((*ends, *config.rollout.stop_token_ids)))


def checked_stops(
    config: Config, tokenizer: PreTrainedTokenizerBase, rows: int, say: Callable[[str], None]
) -> StopTokens:
    """What ends a response; ``say`` hears what is odd about it. Raises ValueError if nothing can end one."""
    stops = StopTokens(stop_token_ids(config))
    if not config.rollout.ignore_eos:
        for note in (require_ends(stops, rows, config.model.path), end_token_note(tokenizer, stops)):
            if note:
                say(note)
    return stops


def load_prompts(
    data: DataConfig,
    source: str,
    problem_text: ProblemText | None,
    tokenizer: PreTrainedTokenizerBase,
    stops: StopTokens,
    say: Callable[[str], None],
    need_answers: bool,
) -> list[Prompt]:
    """The problems of a source, encoded; ``say`` hears how many there are and what was left out. Raises ValueError."""
    statement = None if problem_text is None else partial(_statement, problem_text, data)
    levels = data.levels if source == data.train else ()
    problems = load_problems(source, data.suffix, data.template, levels, statement, need_answers)
    encoded = encode(
        problems,
        tokenizer,
        chat_template=data.chat_template,
        max_prompt_tokens=data.max_prompt_tokens,
        special_tokens=data.special_tokens,
        template=data.template or data.suffix,
        stops=stops,
        say=say,
    )
    dropped = {
        "duplicates": problems.num_duplicates,
        "without an answer": problems.num_unanswered,
        "not wanted by the recipe": problems.num_unwanted,
        f"over {data.max_prompt_tokens} tokens": len(problems) - len(encoded),
    }
    notes = ", ".join(f"{n} {what}" for what, n in dropped.items() if n) or "none dropped"
    unanswered = sum(not p.answer for p in encoded)
    of_them = f", {unanswered} of them without an answer" if unanswered else ""
    say(f"{source}: {problems.num_rows} rows, {len(encoded)} problems{of_them} ({notes})")
    return encoded


def _statement(problem_text: ProblemText, data: DataConfig, problem: Prompt) -> str | None:
    return problem_text(problem, data)
