"""A prompt as the model reads it: text and ids, special tokens marked, and the tokens that end a response."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from rich.text import Text
from transformers import PreTrainedTokenizerBase

SPECIAL = "bold magenta"
MOST_IDS = 160
"""Of a longer prompt the ids in the middle are left out."""


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The ids of all special tokens, those that a template alone uses among them."""
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return {*tokenizer.all_special_ids, *added}


def marked_text(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> Text:
    """The prompt's text with every special token in brackets, in a colour where there are colours."""
    special, text = special_ids(tokenizer), Text()
    for is_special, run in groupby(ids, special.__contains__):
        if is_special:
            for i in run:
                text.append(f"[{token_of(i, tokenizer)}]", SPECIAL)
        else:
            text.append(_decoded(list(run), tokenizer))
    return text


def marked_ids(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> Text:
    """The ids in one line, those of special tokens in brackets."""
    special, text = special_ids(tokenizer), Text()
    for i in _shortened(ids):
        text.append(" " if text else "")
        text.append(*((f"[{i}]", SPECIAL) if i in special else (str(i), "")))
    return text


def stop_lines(stop_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """A line for every token that ends a response."""
    return [f"{i} {token_of(i, tokenizer)}" for i in stop_ids] or ["none: every response has its full length"]


def token_of(token_id: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """The token of an id, or that there is none."""
    token: Any = tokenizer.convert_ids_to_tokens(token_id)
    return "(an id without a token)" if token is None else str(token)


def _shortened(ids: Sequence[int]) -> Iterator[int | str]:
    if len(ids) <= MOST_IDS:
        yield from ids
        return
    yield from ids[: MOST_IDS // 2]
    yield f"... {len(ids) - MOST_IDS} more ..."
    yield from ids[-(MOST_IDS // 2) :]


def _decoded(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    text: Any = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return str(text)
