"""Problems -> token ids -> the endless order in which a run visits them."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

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
) -> list[Prompt]:
    """The problems that have at most `max_prompt_tokens` tokens, with them, in order.

    With `chat_template` a problem is one user message and the assistant's turn is opened; which special tokens there
    are is the template's business. Without, the tokenizer adds its own, once, unless `special_tokens` is false. Raises
    ValueError where the tokenizer cannot do what is asked or no problem is short enough.
    """
    problems = list(problems)
    if not problems:
        raise ValueError("There is no problem to encode.")
    all_ids = _chat_ids(problems, tokenizer) if chat_template else _plain_ids(problems, tokenizer, special_tokens)
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


def _chat_ids(problems: list[Prompt], tokenizer: "PreTrainedTokenizerBase") -> list[list[int]]:
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            f"The tokenizer {tokenizer.name_or_path!r} has no chat template, as those of base models. Give "
            "--data.no_chat_template to use the problem's text as it is, or take a model with a template."
        )
    chats = [[{"role": "user", "content": p.text}] for p in problems]
    # return_dict=False: transformers 5 returns a BatchEncoding otherwise. The call adds no special token of its own.
    ids: Any = tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=True, return_dict=False)
    return ids


def _plain_ids(problems: list[Prompt], tokenizer: "PreTrainedTokenizerBase", special_tokens: bool) -> list[list[int]]:
    all_ids = tokenizer([p.text for p in problems], add_special_tokens=special_tokens)["input_ids"]
    end = tokenizer.eos_token_id
    if end is not None and all(ids and ids[-1] == end for ids in all_ids):
        raise ValueError(
            f"The tokenizer {tokenizer.name_or_path!r} puts its end token {tokenizer.eos_token!r} after every text: a "
            "response could not go on from there. Load it with add_eos_token=False."
        )
    return all_ids


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
        if self._cached is None or self._cached[0] != pass_number:
            # numpy keeps a bit generator's stream for ever, but not what Generator.permutation makes of it (NEP 19).
            draws = np.random.Philox(key=np.array([self._seed, pass_number], np.uint64)).random_raw(len(self._prompts))
            self._cached = pass_number, np.argsort(draws, kind="stable")
        return self._cached[1]


def held_out_prompts(prompts: Sequence[Prompt], limit: int) -> list[Prompt]:
    """The first `limit` prompts in the order of the file; ``position`` is the place in this list."""
    return [replace(prompt, position=place) for place, prompt in enumerate(prompts[:limit])]
