"""Prompts that may not be what the user means: refused, or said in one line."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fastgrpo.data.chat_template import Habits
from fastgrpo.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TAIL_CHARS = 30
_THOUGHT = re.compile(r"[<\[](?P<over>/?)(think|thinking|thought|reasoning)[>\]]\s*\Z", re.IGNORECASE)


def notes_on_template(source: str, habits: Habits, first_text: str) -> Iterator[str]:
    """What the user should know of a chat template. Raises ValueError for one that leaves a message out."""
    if not habits.reads_message:
        raise ValueError(
            f"The chat template {source} writes the same prompt for different problems: it leaves the user's message "
            f"out. Take a tokenizer with another template, or ask without one."
        )
    if not habits.reads_history:
        raise ValueError(
            f"The chat template {source} leaves out the messages before the question, a system's or solved examples: "
            f"take a tokenizer with another template, or the messages out of the data."
        )
    if habits.is_dated:
        yield (
            f"note: the chat template {source} writes the date or draws at random; for it, every day is 26 July 2024 "
            f"and every draw the same, so that prompts are too"
        )
    if not habits.opens_turn:
        yield (
            f"note: the chat template {source} has nothing to open the assistant's turn: prompts end in "
            f"{first_text[-TAIL_CHARS:]!r}, and responses begin there"
        )
    if thought := _THOUGHT.search(first_text):
        what = "has the thought over before the response" if thought["over"] else "opens the thought"
        yield (
            f"note: the chat template {source} {what}: prompts end in {first_text[-TAIL_CHARS:]!r}, and no response "
            f"has what stands there"
        )


def notes_on_changes(problems: Sequence[Prompt], texts: Sequence[str], source: str) -> Iterator[str]:
    """What the user should know of the messages that a chat template does not write as they stand."""
    stripped, changed = [], []
    for problem, text in zip(problems, texts, strict=True):
        altered = [m for m in _messages(problem) if m not in text]
        if any(m.strip() not in text for m in altered):
            changed.append(problem.row)
        elif altered:
            stripped.append(problem.row)
    if changed:
        yield (
            f"warning: the chat template {source} changes what {len(changed)} problems say, as row {changed[0]}: "
            f"prompts have not the words of the data. Take another template if that is not meant"
        )
    if stripped:
        yield (
            f"note: the chat template {source} leaves out white space around {len(stripped)} problems, as row "
            f"{stripped[0]}"
        )


def note_on_begin(all_ids: Sequence[list[int]], tokenizer: "PreTrainedTokenizerBase", source: str) -> str:
    """A line about chats without the begin token that the tokenizer puts before every other text; empty where they
    have it, and where it puts none."""
    begin = tokenizer.bos_token_id
    if begin is None or tokenizer("a")["input_ids"][:1] != [begin]:
        return ""
    if not (without := sum(ids[:1] != [begin] for ids in all_ids)):
        return ""
    return (
        f"warning: {without} prompts begin without {tokenizer.bos_token!r}, which the tokenizer puts before plain "
        f"texts: the chat template {source} does not write it"
    )


def require_plain_ids(all_ids: Sequence[list[int]], tokenizer: "PreTrainedTokenizerBase", special_tokens: bool) -> None:
    """Raises ValueError for a tokenizer that ends every text, and for one that begins a text that has begun."""
    name, begin, end = tokenizer.name_or_path, tokenizer.bos_token_id, tokenizer.eos_token_id
    if end is not None and all(ids and ids[-1] == end for ids in all_ids):
        raise ValueError(
            f"The tokenizer {name!r} puts its end token {tokenizer.eos_token!r} after every text: a response could not "
            f'go on from there. Give --data.no_special_tokens, or write "add_eos_token": false into its '
            f"tokenizer_config.json and take the token out of the post_processor of its tokenizer.json."
        )
    if special_tokens and (twice := _num_begun_twice(all_ids, begin)):
        raise ValueError(
            f"{twice} of {len(all_ids)} prompts begin with {tokenizer.bos_token!r} twice: once in the text, and once "
            f"by the tokenizer {name!r}. Give --data.no_special_tokens, or take it out of the text."
        )


def require_different(
    problems: Sequence[Prompt], texts: Sequence[str], all_ids: Sequence[list[int]], name: str
) -> None:
    """Raises ValueError if problems that differ in more than white space have one prompt: a template cuts them, or the
    tokenizer of this name does not know what they are written in."""
    first: dict[bytes, tuple[Prompt, str]] = {}
    for problem, text, ids in zip(problems, texts, all_ids, strict=True):
        key = hashlib.blake2b(np.asarray(ids, np.int64).tobytes(), digest_size=16).digest()
        other, others_text = first.setdefault(key, (problem, text))
        if other is not problem and _words(other) != _words(problem):
            cause = (
                "the chat template leaves out what is different. Take another template"
                if others_text == text
                else f"the tokenizer {name!r} has the same tokens for both. Take the model's own, with all of its files"
            )
            raise ValueError(
                f"The problems in rows {other.row} and {problem.row} differ and have the same prompt, which ends in "
                f"{text[-TAIL_CHARS:]!r}: {cause}."
            )


def _words(problem: Prompt) -> list[str]:
    return [word for text in _messages(problem) for word in text.split()]


def _messages(problem: Prompt) -> list[str]:
    return [*(text for _, text in problem.history), problem.text]


def notes_on(
    problems: Sequence[Prompt], all_ids: Sequence[list[int]], tokenizer: "PreTrainedTokenizerBase", template: str
) -> Iterator[str]:
    """What the user should know of the prompts: a begin token twice, and control tokens in a problem's own text."""
    if twice := _num_begun_twice(all_ids, tokenizer.bos_token_id):
        yield f"note: {twice} prompts begin with {tokenizer.bos_token!r} twice, as the chat template writes them"
    if found := list(_with_control_tokens(problems, tokenizer, template)):
        problem, token = found[0]
        yield (
            f"note: {len(found)} problems hold control tokens of the tokenizer in their text, as row {problem.row} "
            f"{token!r}: the model reads them as such. Take them out if that is not meant"
        )


def _num_begun_twice(all_ids: Sequence[list[int]], begin: int | None) -> int:
    return 0 if begin is None else sum(ids[:2] == [begin, begin] for ids in all_ids)


def _with_control_tokens(
    problems: Sequence[Prompt], tokenizer: "PreTrainedTokenizerBase", template: str
) -> Iterator[tuple[Prompt, str]]:
    """The problems with a control token that is not of the template around them, and the token."""
    added = tokenizer.added_tokens_decoder.values()
    roles = str(tokenizer.chat_template)  # DeepSeek's, which its template writes, are not marked as special
    tokens = {t.content for t in added if t.content.strip() and (t.special or t.content in roles)}
    if not tokens:
        return
    pattern = re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)))
    beginnings = {token[:2] for token in tokens}  # looking for these is what makes long data quick
    of_template = Counter(pattern.findall(template))
    for problem in problems:
        text = "\n".join(_messages(problem))
        if any(beginning in text for beginning in beginnings):
            brought = Counter(pattern.findall(text)) - of_template
            if brought:
                yield problem, next(iter(brought))
