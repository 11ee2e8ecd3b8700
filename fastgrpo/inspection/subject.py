"""What a run starts from, read as a run reads it: tokenizer, first prompts, the tokens that end a response."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from fastgrpo.config import Config
from fastgrpo.data import PromptStream, load_tokenizer, with_columns
from fastgrpo.data.tokenizer import num_rows_needed, require_rows
from fastgrpo.models.config_file import num_rows
from fastgrpo.models.load import check_model, find_model
from fastgrpo.proof.model import require_sampled
from fastgrpo.recipe import Recipe
from fastgrpo.run.folder import RunFolder
from fastgrpo.run.hub import require_inputs
from fastgrpo.run.inputs import checked_stops, load_prompts
from fastgrpo.types import Prompt

Say = Callable[[str], None]


@dataclass(frozen=True)
class Subject:
    tokenizer: PreTrainedTokenizerBase
    prompts: list[Prompt]  # the run's first, with their positions in its order
    stop_token_ids: tuple[int, ...]


def prepare(recipe: Recipe, config: Config, say: Say) -> None:
    """Lets the recipe make what it starts from, in the folder of its run. Raises ValueError if a run works there."""
    if recipe.prepare is None:
        return
    folder = RunFolder(Path(config.run_dir))
    with folder.lock(say):
        recipe.prepare(config, folder.base, say)
    say(f"{folder.base}: what the recipe starts from, which its run will find there")


def read_subject(recipe: Recipe, config: Config, num_problems: int, say: Say) -> Subject:
    """The first problems that the run would draw responses to, fewer where the data has fewer.

    Raises ValueError for what the user can mend, before any weight is loaded.
    """
    find_model(config.model.path)
    require_inputs([config])
    tokenizer = load_tokenizer(config.model.path, config.model.trust_remote_code)
    rows = num_rows(config.model.path, config.model.trust_remote_code)
    stops = checked_stops(config, tokenizer, rows, say)
    text, with_row = recipe.algorithm.problem_text, recipe.asks_for_row()
    encoded = load_prompts(config.data, config.data.train, text, tokenizer, stops, say, need_answers=not with_row)
    require_rows(encoded, rows, tokenizer)
    stream = PromptStream(encoded, config.seed, config.data.shuffle)
    prompts = stream.prompts_at(0, min(num_problems, len(encoded)))
    longest = max(len(p.prompt_ids) for p in prompts) + config.rollout.max_response_tokens
    check_model(config.model, num_rows_needed(tokenizer), longest)
    if not config.model.skip_proof:
        require_sampled(config)
    return Subject(tokenizer, with_columns(prompts, config.data.train) if with_row else prompts, stops.ids)
