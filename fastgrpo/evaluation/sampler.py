"""Draws responses from a model: its tokenizer, its engine, the tokens that end a response. Text in, text out."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from fastgrpo.config import Config, DataConfig, DeadlineConfig, ModelConfig, RolloutConfig
from fastgrpo.data import encode, load_tokenizer
from fastgrpo.data.stop_tokens import NO_STOPS, StopTokens, require_ends
from fastgrpo.data.tokenizer import num_rows_needed, require_rows
from fastgrpo.evaluation.settings import Settings
from fastgrpo.models.config_file import end_token_ids, num_rows, read_config
from fastgrpo.models.load import check_model, compute_dtype, find_model
from fastgrpo.proof.model import require_sampled
from fastgrpo.rollout.engine_spec import EngineSpec
from fastgrpo.rollout.engines import check_engine, start_engine
from fastgrpo.rollout.servers.served_model import ServedModel
from fastgrpo.types import Prompt, Request, Response, Sampling

NO_LIMIT = 1 << 40
PREFILLED_TOGETHER = 8
"""Free slots that the built-in engine fills together, as it does with a group in training."""


@dataclass(frozen=True)
class Asked:
    """One response to be drawn."""

    benchmark: str
    problem: int
    sample: int
    position: int  # a key of the random draws; an engine reads one prompt for all requests of one position
    prompt_ids: np.ndarray  # [num_prompt_tokens] int32
    sampling: Sampling


@dataclass(frozen=True)
class Drawn:
    """The response to a request."""

    asked: Asked
    text: str
    num_tokens: int
    finish_reason: str


def noise_position(benchmark: str, problem: int) -> int:
    """The key of the random draws of a problem's samples, a function of its benchmark's name and its place.

    So the other benchmarks of an evaluation do not change its responses.
    """
    return zlib.crc32(benchmark.encode()) << 24 | problem


def read_tokenizer(settings: Settings, model: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model. Raises ValueError if there is no model or no tokenizer."""
    find_model(model)
    return load_tokenizer(model, settings.trust_remote_code)


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    chat_template: bool,
    template: str = "",
    special_tokens: bool = True,
    stops: StopTokens = NO_STOPS,
    say: Callable[[str], None] = lambda text: None,
) -> list[np.ndarray]:
    """The token ids of each text, made by ``template``. Raises ValueError as `encode` does."""
    problems = [Prompt(row, text, answer="") for row, text in enumerate(texts)]
    try:
        encoded = encode(
            problems,
            tokenizer,
            chat_template=chat_template,
            max_prompt_tokens=NO_LIMIT,
            special_tokens=special_tokens,
            template=template,
            stops=stops,
            say=say,
        )
    except ValueError as error:
        if not chat_template or getattr(tokenizer, "chat_template", None):
            raise
        raise ValueError(
            f"the tokenizer {tokenizer.name_or_path!r} has no chat template, as is usual for base models: give "
            f"--template simple, --template boxed or a text with {{problem}}"
        ) from error
    return [prompt.prompt_ids for prompt in encoded]


def stop_token_ids(model: str, given: tuple[int, ...], trust_remote_code: bool) -> tuple[int, ...]:
    """The given ids, or else the end tokens of the model's generation settings, or else of its configuration.

    Raises ValueError if there are none.
    """
    ids = given or end_token_ids(model, trust_remote_code)
    if not ids:
        raise ValueError(f"{model} names no end token: give --stop_token_ids")
    return ids


def num_positions(model: str, trust_remote_code: bool) -> int:
    """The longest sequence that the model was made for; `NO_LIMIT` if its configuration does not say."""
    config = read_config(model, trust_remote_code)
    return getattr(config, "max_position_embeddings", None) or NO_LIMIT


def engine_config(settings: Settings, model: str, longest_prompt: int, longest_response: int) -> Config:
    """The training configuration that engines expect, for one that shares its devices with nobody, or for servers."""
    return Config(
        device=settings.device,
        model=ModelConfig(path=model, dtype=settings.dtype, trust_remote_code=settings.trust_remote_code),
        data=DataConfig(max_prompt_tokens=longest_prompt),
        rollout=RolloutConfig(
            engine="vllm" if settings.servers else settings.engine,
            servers=settings.servers,
            server_key_file=settings.server_key_file,
            gpus=settings.tensor_parallel,
            tensor_parallel=settings.tensor_parallel,
            max_response_tokens=longest_response,
            max_sequences=settings.max_sequences,
            kv_cache_gib=settings.kv_cache_gib,
            enforce_eager=settings.enforce_eager,
        ),
        deadline=DeadlineConfig(start_s=settings.server_start_s, stall_s=settings.server_stall_s),
    )


def check_fits(
    settings: Settings,
    model: str,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[Asked],
    say: Callable[[str], None] = lambda text: None,
) -> Config:
    """The engine's configuration. ``say`` hears what was proven of the engine. Raises ValueError if a sequence can be
    longer than the model's positions, or the engine would sample the model wrongly."""
    longest = max(len(a.prompt_ids) + a.sampling.max_response_tokens for a in asked)
    longest_response = max(a.sampling.max_response_tokens for a in asked)
    longest_prompt = longest - longest_response
    positions = num_positions(model, settings.trust_remote_code)
    if longest_prompt >= positions and not settings.extrapolate:
        raise ValueError(
            f"{model} has {positions} positions, and the longest prompt alone has {longest_prompt} tokens: choose "
            f"other benchmarks, or --extrapolate beyond what the model was made for"
        )
    if longest > positions and not settings.extrapolate:
        raise ValueError(
            f"{model} has {positions} positions, prompt and response may take {longest_prompt} + {longest_response} "
            f"tokens: lower --max_response_tokens to {max(1, positions - longest_prompt)}, or --extrapolate beyond "
            f"what the model was made for"
        )
    config = engine_config(settings, model, longest_prompt, longest_response)
    check_model(config.model, num_rows_needed(tokenizer), min(longest, positions))
    rows = num_rows(model, settings.trust_remote_code)
    require_rows((prompt_of(a) for a in asked), rows, tokenizer)
    if note := require_ends(StopTokens(asked[0].sampling.stop_token_ids, "--stop_token_ids"), rows, model):
        say(note)
    if proven := require_sampled(config):
        say(proven)
    return config


def draw(
    config: Config,
    device: torch.device,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[Asked],
    take: Callable[[Drawn], None],
    check: Callable[[], None],
    serve: Callable[[], ServedModel] | None = None,
) -> None:
    """Draws all responses, gives each to ``take`` as it ends, and frees the engine at the end.

    ``check`` is called after every step, and may raise to stop. ``serve``: starts to speak with servers, which draw in
    place of an engine here. Raises ValueError or ConnectionError as `ServedModel` does.
    """
    check_engine(config, device, compute_dtype(config.model, device))
    engine = start_engine(EngineSpec(config, device.type, "own_process")) if serve is None else serve()
    try:
        engine.submit([Request(n, prompt_of(a), a.sample, a.sampling) for n, a in enumerate(asked)])
        while engine.is_unfinished():
            for number, response in engine.step():
                take(_drawn(asked[number], response, tokenizer))
            check()
    finally:
        engine.close()
        del engine
        if device.type == "cuda":
            torch.cuda.empty_cache()


def prompt_of(asked: Asked) -> Prompt:
    """The prompt of a request, as engines take it."""
    return Prompt(asked.problem, text="", answer="", prompt_ids=asked.prompt_ids, position=asked.position)


def _drawn(asked: Asked, response: Response, tokenizer: PreTrainedTokenizerBase) -> Drawn:
    text: Any = tokenizer.decode(response.response_ids.tolist(), skip_special_tokens=True)
    return Drawn(asked, text, len(response), response.finish_reason)
