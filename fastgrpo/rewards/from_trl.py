"""Reward functions as TRL's GRPOTrainer calls them."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from fastgrpo.rewards.judgement import RewardError
from fastgrpo.rewards.signature import Signature

OURS = ("prompts", "completions", "completion_ids")
NO_COLUMNS = ("prompt", "completion", "completion_ids")  # columns that TRL does not hand on


def from_trl(
    function: Callable[..., Any], *, batch: Literal["group", "response"] = "group", conversational: bool = False
) -> Callable[..., Any]:
    """A reward that calls ``function(prompts=..., completions=..., completion_ids=..., **columns)``. Each is a list of
    one element for each response, and so is what it returns: numbers or None. It may be ``async``.

    The columns are those of the data set's row. A function without ``**kwargs`` gets those that it names. TRL calls it
    once for all responses of a device; here a call is for the responses of one prompt, or with ``batch="response"`` for
    one of them. ``conversational``: prompts and completions are lists of messages and not texts. A list of another
    length stops the run.
    """
    if batch not in ("group", "response"):
        raise ValueError(f'batch is "group" or "response", got {batch!r}')
    return _FromTrl(function, batch == "group", conversational)


class _FromTrl:
    def __init__(self, function: Callable[..., Any], whole_groups: bool, conversational: bool) -> None:
        self.function, self.conversational = function, conversational
        parameters = inspect.signature(function).parameters.values()
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
        self.wanted = None if takes_any else {p.name for p in parameters}
        self.needed = {
            p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        }
        is_async = any(map(inspect.iscoroutinefunction, (function, type(function).__call__)))
        self.called_as = Signature(frozenset(("prompt", "row", "response_ids")), is_async, whole_groups)

    def __call__(self, response: Any, answer: Any, *, prompt: Any, row: Any, response_ids: Any) -> Any:
        if self.called_as.whole_groups:
            arguments = self._arguments(prompt, response, response_ids, row)
        else:
            arguments = self._arguments([prompt], [response], [response_ids], [row])
        found, count = self.function(**arguments), len(response) if self.called_as.whole_groups else 1
        return self._awaited(found, count) if self.called_as.is_async else self._checked(found, count)

    def _arguments(
        self, prompts: Sequence[str], texts: Sequence[str], ids: Sequence[list[int]], rows: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        columns = {name: [row[name] for row in rows] for name in rows[0] if name not in (*OURS, *NO_COLUMNS)}
        if missing := sorted(self.needed - columns.keys() - set(OURS)):
            raise TypeError(
                f"{self._name} asks for {', '.join(missing)}; the data has the columns {', '.join(columns)}"
            )
        given = {
            "prompts": [self._message("user", text) for text in prompts],
            "completions": [self._message("assistant", text) for text in texts],
            "completion_ids": list(ids),
            **columns,
        }
        return {name: values for name, values in given.items() if self.wanted is None or name in self.wanted}

    def _message(self, role: str, text: str) -> Any:
        return [{"role": role, "content": text}] if self.conversational else text

    async def _awaited(self, found: Any, count: int) -> Any:
        return self._checked(await found, count)

    def _checked(self, found: Any, count: int) -> Any:
        rewards = list(found)
        if len(rewards) != count:
            raise RewardError(f"{self._name} got {count} completions and returned a list of {len(rewards)} rewards")
        return rewards if self.called_as.whole_groups else rewards[0]

    @property
    def _name(self) -> str:
        return getattr(self.function, "__qualname__", type(self.function).__qualname__)
