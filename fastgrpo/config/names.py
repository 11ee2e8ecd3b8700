"""Settings by names that they had, and values that are none of their choices: refused with what is meant."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import Any, Literal, get_args, get_origin, get_type_hints

from fastgrpo.config.settings import RULES, SECTIONS, Config
from fastgrpo.config.types import near, said

RENAMED = {
    "deadline.verify_s": "deadline.judge_s",
    "objective.head reference": "objective.loss_path definition",
    "objective.head": "objective.loss_path",
    "objective.loss_path reference": "objective.loss_path definition",
    "rollout.no_signal": "rollout.zero_signal_groups",
    "rollout.running": "rollout.kv_on_sync",
    "sync.cpu_layers": "sync.vllm_cpu_layers",
    "sync.verify_every": "sync.compare_every",
}
"""What a setting, or one of its values, was called in earlier versions, and what it is called now."""


def refuse_old_names(given: Iterable[tuple[str, Any]]) -> None:
    """Raises ValueError with the new name where a setting or its value is given by an old one."""
    for name, value in given:
        for old in (f"{name} {value}", name):
            if old in RENAMED:
                raise ValueError(f"--{old} is now called --{RENAMED[old]}")


def refuse_old_arguments(arguments: Sequence[str]) -> None:
    """`refuse_old_names` for a command line."""
    refuse_old_names(given_on(arguments))


def given_on(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The settings of a command line with their first words, in each of its spellings: ``--a.b_c x``, ``--a.b-c=x``."""
    for argument, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        name, is_whole, value = argument.partition("=")
        if name.startswith("--"):
            yield name[2:].replace("-", "_"), value if is_whole else following


def refuse_unknown_choices(arguments: Sequence[str]) -> None:
    """Raises ValueError, with the near ones, where a command line gives a setting a value that is none of its choices.

    For settings that have choices and nothing else; other values are the parser's to refuse.
    """
    for name, value in given_on(arguments):
        section, _, field_name = name.rpartition(".")
        hint = get_type_hints(SECTIONS.get(section, Config)).get(field_name)
        if name in RULES and get_origin(hint) is Literal and value not in map(str, get_args(hint)):
            raise ValueError(f"--{name} cannot be {value!r}: it is {said(hint)}{near(value, hint)}")


def _refusing_old_names(init: Callable[..., None], prefix: str) -> Callable[..., None]:
    @functools.wraps(init)
    def checked(self: Any, **settings: Any) -> None:
        refuse_old_names((prefix + name, value) for name, value in settings.items())
        init(self, **settings)

    return checked


for _name, _section in SECTIONS.items():
    _section.__init__ = _refusing_old_names(_section.__init__, f"{_name}.")
