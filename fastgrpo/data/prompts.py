"""Problems -> token ids -> the endless order in which a run visits them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fastgrpo.data.answers import is_text
from fastgrpo.data.chat_template import Chat, TemplateFailed, render, source_of
from fastgrpo.data.prompt_checks import (
    note_on_begin,
    notes_on,
    notes_on_changes,
    notes_on_template,
    require_different,
    require_plain_ids,
)
from fastgrpo.data.stop_tokens import NO_STOPS, StopTokens, turn_end_note
from fastgrpo.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode(
    problems: Iterable[Prompt],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    chat_template: bool,
    max_prompt_tokens: int,
    special_tokens: bool = True,
    template: str = "",
    stops: StopTokens = NO_STOPS,
    say: Callable[[str], None] = lambda text: None,
) -> list[Prompt]:
    """The problems that have at most `max_prompt_tokens` tokens, with them, in order.

    With `chat_template` a problem is the user's message after those of its ``history``, and the assistant's turn is
    opened; which special tokens there are is the template's business. Without, the tokenizer adds its own, once, unless
    `special_tokens` is false. What is odd about the prompts and may still be meant is told to ``say``, a line each;
    ``template`` is the text that a run puts around every problem, ``stops`` what ends its responses. Raises ValueError
    where the tokenizer or its template cannot do what is asked, different problems become one prompt, or no problem is
    short enough.
    """
    problems = list(problems)
    if not problems:
        raise ValueError("There is no problem to encode.")
    if chat_template:
        texts = _chat_texts(problems, tokenizer, stops, say)
        all_ids = _ids(tokenizer, texts, special_tokens=False)  # what the template wrote is all
        if note := note_on_begin(all_ids, tokenizer, source_of(tokenizer)):
            say(note)
    else:
        texts = _plain_texts(problems)
        all_ids = _ids(tokenizer, texts, special_tokens)
        require_plain_ids(all_ids, tokenizer, special_tokens)
    require_different(problems, texts, all_ids, tokenizer.name_or_path)
    for note in notes_on(problems, all_ids, tokenizer, template):
        say(note)
    kept = []
    for problem, ids in zip(problems, all_ids, strict=True):
        if not ids:
            raise ValueError(f"The tokenizer makes no token of the problem in row {problem.row}: {problem.text[:60]!r}")
        if len(ids) <= max_prompt_tokens:
            kept.append(replace(problem, prompt_ids=np.asarray(ids, np.int32)))
    if not kept:
        raise ValueError(
            f"None of {len(problems)} problems has at most --data.max_prompt_tokens {max_prompt_tokens} tokens: the "
            f"shortest has {min(map(len, all_ids))}. Raise the limit."
        )
    return kept


def _chat_texts(
    problems: list[Prompt], tokenizer: "PreTrainedTokenizerBase", stops: StopTokens, say: Callable[[str], None]
) -> list[str]:
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            f"The tokenizer {tokenizer.name_or_path!r} has no chat template, as those of base models. Give "
            "--data.no_chat_template to use the problem's text as it is, or take a model with a template."
        )
    try:
        texts, habits = render(tokenizer, [_chat(p) for p in problems])
    except TemplateFailed as failure:
        problem = problems[failure.place]
        raise ValueError(
            f"{failure} (on the problem in row {problem.row}, {problem.text[:60]!r}). Mend the template, take another "
            f"tokenizer, or ask without a chat template."
        ) from None
    source = source_of(tokenizer)
    for note in notes_on_template(source, habits, texts[0]):
        say(note)
    for note in (*notes_on_changes(problems, texts, source), turn_end_note(tokenizer, stops, habits.turn_end, source)):
        if note:
            say(note)
    return texts


def _chat(problem: Prompt) -> Chat:
    return [{"role": role, "content": text} for role, text in (*problem.history, ("user", problem.text))]


def _plain_texts(problems: list[Prompt]) -> list[str]:
    for problem in problems:
        if problem.history:
            raise ValueError(
                f"The problem in row {problem.row} follows other messages ({problem.history[0][0]}), which only a chat "
                f"template puts into words: ask with one, or take them out of the data."
            )
    return [p.text for p in problems]


def _ids(tokenizer: "PreTrainedTokenizerBase", texts: list[str], special_tokens: bool) -> list[list[int]]:
    if broken := next((text for text in texts if not is_text(text)), None):
        raise ValueError(f"A prompt holds half a surrogate pair, which no tokenizer reads: {broken[:60]!r}")
    ids: Any = tokenizer(texts, add_special_tokens=special_tokens)["input_ids"]
    return ids


class PromptStream:
    """The endless order of training prompts, a pure function of (seed, position).

    Each pass over the data is its own permutation, so that a run resumes from a position alone and any reader, in
    pieces of any size, sees the same order. Without `shuffle` each pass is the order of the file.
    """

    def __init__(self, prompts: Sequence[Prompt], seed: int, shuffle: bool = True) -> None:
        if not prompts:
            raise ValueError("A stream of prompts needs at least one prompt.")
        if not 0 <= seed < 2**64:
            raise ValueError(f"The seed of the data order must be in [0, 2**64), got {seed}.")
        self._prompts = prompts
        self._seed = seed
        self._shuffle = shuffle
        self._cached: tuple[int, np.ndarray] | None = None

    def prompts_at(self, first_position: int, count: int) -> list[Prompt]:
        """The prompts at [first_position, first_position + count), each with its position in the whole stream."""
        if first_position < 0 or count < 0:
            raise ValueError(f"Positions count from 0: got {count} prompts from {first_position}.")
        return [
            replace(self._prompts[self._index(position)], position=position)
            for position in range(first_position, first_position + count)
        ]

    def _index(self, position: int) -> int:
        pass_number, place = divmod(position, len(self._prompts))
        return int(self._permutation(pass_number)[place]) if self._shuffle else place

    def _permutation(self, pass_number: int) -> np.ndarray:  # [num_prompts] int64
        cached = self._cached  # read once: several threads may ask
        if cached is None or cached[0] != pass_number:
            # numpy keeps a bit generator's stream for ever, but not what Generator.permutation makes of it (NEP 19).
            draws = np.random.Philox(key=np.array([self._seed, pass_number], np.uint64)).random_raw(len(self._prompts))
            self._cached = cached = pass_number, np.argsort(draws, kind="stable")
        return cached[1]


def held_out_prompts(prompts: Sequence[Prompt], limit: int) -> list[Prompt]:
    """The first `limit` prompts in the order of the file; ``position`` is the place in this list."""
    return [replace(prompt, position=place) for place, prompt in enumerate(prompts[:limit])]
