"""The tokens that end a response, and those that the tokenizer and its chat template mean to end one with."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TURN_END_CHARS = 40


@dataclass(frozen=True)
class StopTokens:
    """What ends a response. Without ids nothing does but its limit, and nothing is said."""

    ids: tuple[int, ...] = ()
    flag: str = "--rollout.stop_token_ids"  # makes the number after it one of them

    @property
    def named(self) -> str:
        return ", ".join(map(str, self.ids))


NO_STOPS = StopTokens()


def require_ends(stops: StopTokens, num_rows: int, path: str) -> str:
    """A line about end tokens that the model has no row for, and so never samples; empty where there are none.

    Raises ValueError where it has a row for none of them: a response would always go on to its limit.
    """
    outside = ", ".join(str(n) for n in stops.ids if n >= num_rows)
    if not stops.ids:
        raise ValueError(f"{path} names no end token: give {stops.flag}")
    if all(n >= num_rows for n in stops.ids):
        raise ValueError(
            f"no response of {path} could end: the end tokens are {outside}, and the model has {num_rows} rows. Mend "
            f"eos_token_id in its generation_config.json, or give {stops.flag}"
        )
    return f"note: {outside} ends no response: {path} has {num_rows} rows, and never samples it" if outside else ""


def end_token_note(tokenizer: "PreTrainedTokenizerBase", stops: StopTokens) -> str:
    """A line about a tokenizer whose end token ends no response; empty where it does."""
    end = tokenizer.eos_token_id
    if end is None or not stops.ids or end in stops.ids:
        return ""
    return (
        f"note: the tokenizer's end token {tokenizer.eos_token!r} ({end}) ends no response, since the model's "
        f"generation settings name {stops.named}: {stops.flag} {end} makes it one"
    )


def turn_end_note(tokenizer: "PreTrainedTokenizerBase", stops: StopTokens, turn_end: str, source: str) -> str:
    """A line about a chat template that ends the assistant's turn with what ends no response; empty where it does, and
    where nothing but white space follows a turn. ``source``: where the template stands.

    A model that has learnt this template would write the other side's turns as well, up to its limit.
    """
    ids: list[int] = tokenizer(turn_end, add_special_tokens=False)["input_ids"]
    end = next((n for n in ids if str(tokenizer.decode([n])).strip()), None)
    if end is None or not stops.ids or end in stops.ids:
        return ""
    begin = f"warning: the chat template {source} ends the assistant's turn with "
    if end not in tokenizer.added_tokens_decoder:
        return (
            f"{begin}{turn_end[:TURN_END_CHARS]!r}, which is no token of its own, so that it ends no response "
            f"({stops.named} does). Take the template that the model was trained with"
        )
    if end == tokenizer.eos_token_id:
        return ""  # `end_token_note` has said it
    return f"{begin}{tokenizer.decode([end])!r} ({end}), which ends no response: {stops.flag} {end} makes it one"
