"""What a run starts from, checked before any weight is loaded."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from fastgrpo.attention import choose_attention
from fastgrpo.checkpoint import require_space
from fastgrpo.config import Config
from fastgrpo.data import EncodedPrompts, encode, held_out_prompts, load_problems, load_tokenizer
from fastgrpo.display import Display
from fastgrpo.policy.model import check_model, find_model
from fastgrpo.types import Prompt


@dataclass(frozen=True)
class Inputs:
    tokenizer: PreTrainedTokenizerBase
    train: EncodedPrompts
    held_out: list[Prompt]


def load_inputs(config: Config, display: Display, device: torch.device, dtype: torch.dtype) -> Inputs:
    """Tokenizer and problems, checked before any weight is loaded."""
    find_model(config.model.path)
    try:
        tokenizer = load_tokenizer(config.model.path, config.model.trust_remote_code)
    except OSError as error:
        raise ValueError(
            f"--model.path {config.model.path}: no tokenizer can be had, neither from a folder nor from the hub "
            f"({str(error).splitlines()[0]}). Give a local folder, or a hub id that this machine can reach"
        ) from error
    longest = config.data.max_prompt_tokens + config.rollout.max_response_tokens
    require_space(Path(config.run_dir), check_model(config.model, len(tokenizer), longest), dtype)
    choose_attention(config.model.attention, device, dtype)
    encoded = _load_prompts(config, config.data.train, tokenizer, display)
    held_out = []
    if config.data.held_out:
        held_out = held_out_prompts(
            _load_prompts(config, config.data.held_out, tokenizer, display), config.evaluation.max_problems
        )
    return Inputs(tokenizer, encoded, held_out)


def _load_prompts(config: Config, source: str, tokenizer: PreTrainedTokenizerBase, display: Display) -> EncodedPrompts:
    problems = load_problems(source, config.data.suffix)
    encoded = encode(
        problems,
        tokenizer,
        chat_template=config.data.chat_template,
        max_prompt_tokens=config.data.max_prompt_tokens,
    )
    dropped = {
        "duplicates": problems.num_duplicates,
        "without an answer": problems.num_unanswered,
        f"over {config.data.max_prompt_tokens} tokens": encoded.num_too_long,
    }
    notes = ", ".join(f"{n} {what}" for what, n in dropped.items() if n) or "none dropped"
    display.say(f"{source}: {problems.num_rows} rows, {len(encoded)} problems ({notes})")
    return encoded
