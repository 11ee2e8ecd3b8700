"""What a reward wants to know besides response and answer: it says so by the names of its parameters."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

OFFERED = {
    "prompt": "the text as it was asked",
    "row": "a dict of every column of the data set's row",
    "response_ids": "the response's token ids",
    "finish_reason": '"stop" or "length"',
    "group": "the texts of the prompt's other responses",
}
"""What a reward may ask for by name."""


@dataclass(frozen=True)
class Signature:
    """How a reward is called: ``names`` are asked for besides response and answer. ``whole_groups``: one call is for
    all responses of a prompt, each parameter is a list, and so is what it returns."""

    names: frozenset[str] = frozenset()
    is_async: bool = False
    whole_groups: bool = False

    @property
    def waits_for_group(self) -> bool:
        """Whether no response can be judged before the last one of its group is there."""
        return self.whole_groups or "group" in self.names

    def as_json(self) -> dict[str, Any]:
        return {"names": sorted(self.names), "is_async": self.is_async, "whole_groups": self.whole_groups}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        return cls(frozenset(values["names"]), values["is_async"], values["whole_groups"])


def signature_of(reward: Callable[..., Any]) -> Signature:
    """How a reward is called. Raises TypeError for one that asks for what there is not.

    A reward may say it itself, as those of ``from_trl`` do: its attribute ``called_as`` is a `Signature`.
    """
    if isinstance(said := getattr(reward, "called_as", None), Signature):
        return said
    is_async = any(map(inspect.iscoroutinefunction, (reward, type(reward).__call__)))
    try:
        parameters = list(inspect.signature(reward).parameters.values())
    except ValueError:  # of a builtin, which nobody can ask
        return Signature(is_async=is_async)
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    takes_any = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    if len(positional) < 2 and not takes_any:
        raise TypeError(f"a reward takes (response, answer), got {_shown(reward)}")
    if [p.name for p in parameters[:2]] == ["prompts", "completions"]:
        raise TypeError(f"{_shown(reward)} has the signature of TRL's rewards: take fastgrpo.rewards.from_trl of it")
    if misplaced := [p.name for p in positional[:2] if p.name in OFFERED]:
        raise TypeError(
            f"a reward gets response and answer first, and {_shown(reward)} has {misplaced[0]!r} in their place: put "
            f"it after them"
        )
    others = [*positional[2:], *(p for p in parameters if p.kind is p.KEYWORD_ONLY)]
    for p in others:
        if p.name not in OFFERED and p.default is p.empty:
            offered = "; ".join(f"{name}: {what}" for name, what in OFFERED.items())
            raise TypeError(
                f"the reward {_shown(reward)} asks for {p.name!r}. After response and answer there is {offered}"
            )
    return Signature(frozenset(p.name for p in others if p.name in OFFERED), is_async)


def _shown(reward: Callable[..., Any]) -> str:
    return f"{getattr(reward, '__qualname__', type(reward).__qualname__)}{inspect.signature(reward)}"
