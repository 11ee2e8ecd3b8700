"""``fastgrpo train --help``: the settings that are changed most come first, those that few need last."""

import ast
import inspect
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from itertools import pairwise
from types import NoneType
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from rich.console import Group
from rich.padding import Padding
from rich.panel import Panel
from rich.text import Text

from fastgrpo.command_line.console import Page
from fastgrpo.config import Config, flatten
from fastgrpo.recipe.recipe import Recipe

CHANGED_MOST = (
    "model.path", "data.train", "data.held_out", "data.prompts_per_step", "rollout.group_size",
    "rollout.max_response_tokens", "objective.loss", "optimizer.learning_rate", "optimizer.updates_per_step",
    "optimizer.tokens_per_microbatch", "rollout.engine", "rollout.gpus", "steps",
)  # fmt: skip
RARE_SECTIONS = ("parallel", "sync", "deadline")
WIDEST = 100


class Setting(NamedTuple):
    name: str  # on the command line
    takes: str
    meaning: str

    @property
    def section(self) -> str:
        return self.name.rpartition(".")[0]


def print_help(recipe: Recipe) -> None:
    """Every setting once, with the recipe's defaults; those that are changed most stand before the others too."""
    console = Page(highlight=False)
    console.width = min(console.width, WIDEST)
    defaults, settings = flatten(recipe.config), {s.name: s for s in all_settings()}
    console.print(
        "usage: fastgrpo train [RECIPE] [--ranks N] [--section.field value ...]\n\n"
        "Train by GRPO. RECIPE is a name that `fastgrpo recipes` lists, or a Python file of your own. N is the number "
        "of ranks: one a GPU unless it is given, or two on a machine without. Dashes are accepted where underscores "
        f"are shown. The defaults shown are those of the recipe {recipe.name}.\n",
        markup=False,
    )

    def panel(title: str, shown: list[Setting]) -> None:
        lines = [line for setting in shown for line in _lines(setting, defaults[setting.name])]
        console.print(Panel(Group(*lines), title=title, title_align="left", border_style="dim"))

    panel("changed most", [settings[name] for name in CHANGED_MOST])
    sections = sorted(dict.fromkeys(s.section for s in settings.values()), key=RARE_SECTIONS.__contains__)
    for section in sections:
        panel(section or "the run", [s for s in settings.values() if s.section == section])


def all_settings() -> Iterator[Setting]:
    """Every setting, in the order of ``Config``."""
    yield from _settings(Config, "")


def _settings(owner: type, prefix: str) -> Iterator[Setting]:
    meanings, hints = _docstrings(owner), get_type_hints(owner)
    for field in fields(owner):
        hint = hints[field.name]
        if isinstance(hint, type) and is_dataclass(hint):
            yield from _settings(hint, f"{field.name}.")
        else:
            takes = f", --{prefix}no_{field.name}" if hint is bool else f" {_takes(hint)}"
            yield Setting(f"{prefix}{field.name}", takes, meanings[field.name])


def _docstrings(owner: type) -> dict[str, str]:
    """The text below each field, which Python itself does not keep."""
    definition = ast.parse(inspect.getsource(owner)).body[0]
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: " ".join(below.value.value.split())
        for field, below in pairwise(definition.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str)
    }


def _takes(hint: Any) -> str:
    """A setting's type as it is written on a command line."""
    parts = get_args(hint)
    if get_origin(hint) is Literal:
        return "|".join(map(str, parts))
    if get_origin(hint) is tuple:
        return " ".join("..." if part is Ellipsis else _takes(part) for part in parts)
    if parts:
        return "|".join(_takes(part) for part in parts)
    return {NoneType: "None", bool: "True|False"}.get(hint) or hint.__name__.upper()


def _lines(setting: Setting, default: Any) -> tuple[Text, Padding]:
    value = " ".join(map(str, default)) if isinstance(default, list) else default
    shown = repr(value) if isinstance(value, str) and (not value or " " in value) else value
    head = Text.assemble((f"--{setting.name}", "bold"), setting.takes)
    return head, Padding(Text.assemble(setting.meaning, (f" (default: {shown})", "dim")), (0, 0, 0, 6))
