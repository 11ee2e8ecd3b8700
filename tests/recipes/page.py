"""The tables of docs/fidelity.md, made from the published constants and from the recipes.

``python -m tests.recipes.page`` writes them into the page, between its markers; a test fails while they are old.
"""

import re
import runpy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fastgrpo.algorithm import Algorithm
from fastgrpo.config import Config, flatten
from fastgrpo.recipe import Recipe, find_recipe, load_recipe
from tests.recipes.published import Between, Published, System, agrees, published

PAGE = Path(__file__).parents[2] / "docs" / "fidelity.md"
_WHOLE = re.compile(r"<!-- recipe (?P<name>\w+) -->\n.*?<!-- end -->", re.DOTALL)
_DIFFERENCES = re.compile(r"<!-- (?P<names>[\w ]+) beside (?P<base>\w+) -->\n.*?<!-- end -->", re.DOTALL)


def verifier_of(name: str) -> str:
    """Name of the function that a shipped recipe judges with."""
    return str(runpy.run_path(str(find_recipe(name)))["reward"].__name__)


def algorithm_value(described: Mapping[str, Any], path: str) -> Any:
    """What an algorithm holds at a path: ``shaping.Cycled.on_steps`` is of the shaping that is a Cycled."""
    value: Any = described
    for step in path.split("."):
        if isinstance(value, Mapping):
            value = value.get(step)
        elif isinstance(value, list):
            value = next((v for v in value if isinstance(v, Mapping) and v.get("is") == step), None)
        else:
            return None
    return value


def filled(page: str) -> str:
    """The page with its tables made anew.

    ``<!-- recipe NAME -->`` ... ``<!-- end -->`` holds all of a recipe, ``<!-- NAME NAME beside BASE -->`` what each
    NAME has that BASE has not.
    """
    systems = published()

    def whole(found: re.Match[str]) -> str:
        name = found["name"]
        return f"<!-- recipe {name} -->\n{_whole(name, systems[name])}\n<!-- end -->"

    def differences(found: re.Match[str]) -> str:
        names, base = found["names"].split(), systems[found["base"]]
        rows = [row for name in names for row in _rows_unlike(name, systems[name], base)]
        text = "\n".join(["| recipe | setting | source | ours | from |", "|---|---|---|---|---|", *rows])
        return f"<!-- {found['names']} beside {found['base']} -->\n{text}\n<!-- end -->"

    return _DIFFERENCES.sub(differences, _WHOLE.sub(whole, page))


def shown_recipes(page: str) -> set[str]:
    """Names of the recipes that the page has tables for."""
    others = {name for found in _DIFFERENCES.finditer(page) for name in found["names"].split()}
    return others | {found["name"] for found in _WHOLE.finditer(page)}


def _whole(name: str, system: System) -> str:
    recipe = load_recipe(find_recipe(name))
    defaults = flatten(Config())
    rows = [
        f"| `{setting}` | {shown(constant.value)} | {_against(constant, ours)} "
        f"| {'default' if ours == defaults.get(setting, name) else 'recipe'} | {_source(constant)} |"
        for setting, constant, ours in _constants(name, system, recipe)
    ]
    head = ["| setting | source | ours | set in | from |", "|---|---|---|---|---|"]
    parts = ["\n".join([*head, *rows]), _ours(system, recipe), _fidelity(system, recipe), _beside(system)]
    return "\n\n".join(part for part in parts if part)


def _constants(name: str, system: System, recipe: Recipe) -> Iterator[tuple[str, Published, Any]]:
    settings, described = flatten(recipe.config), recipe.algorithm.describe()
    yield "reward", system.verifier, verifier_of(name)
    for path, constant in sorted(system.algorithm.items()):
        yield f"algorithm.{path}", constant, algorithm_value(described, path)
    for setting, constant in sorted(system.settings.items()):
        yield setting, constant, settings[setting]


def _rows_unlike(name: str, system: System, base: System) -> list[str]:
    recipe = load_recipe(find_recipe(name))
    known = {
        "reward": base.verifier,
        **{f"algorithm.{k}": c for k, c in base.algorithm.items()},
        **base.settings,
    }
    rows = [
        f"| `{name}` | `{setting}` | {shown(constant.value)} | {_against(constant, ours)} | {_source(constant)} |"
        for setting, constant, ours in _constants(name, system, recipe)
        if known.get(setting) != constant
    ]
    values, plain = _all_values(recipe), _all_values(None)
    return rows + [
        f"| `{name}` | `{k}` | not given | {shown(values[k])} | {_cell(why)} |"
        for k, why in sorted(system.ours.items())
        if k not in base.ours and values[k] != plain[k]
    ]


def _all_values(recipe: Recipe | None) -> dict[str, Any]:
    """Every setting and every part of the algorithm; of no recipe, the defaults."""
    if recipe is None:
        return {**flatten(Config()), **Algorithm().describe()}
    return {**flatten(recipe.config), **recipe.algorithm.describe()}


def _ours(system: System, recipe: Recipe) -> str:
    values, plain = _all_values(recipe), _all_values(None)
    rows = [
        f"| `{k}` | {shown(values[k])} | {'default' if values[k] == plain[k] else 'recipe'} | {_cell(why)} |"
        for k, why in sorted(system.ours.items())
    ]
    return "\n".join(["| not given by a source | ours | set in | why |", "|---|---|---|---|", *rows]) if rows else ""


def _fidelity(system: System, recipe: Recipe) -> str:
    if not system.fidelity:
        return ""
    before, after = flatten(recipe.config), flatten(recipe.with_fidelity().config)
    changes = [
        f"`{k}` from {shown(before[k])} to {shown(after[k])} ({system.fidelity[k].source})"
        for k in sorted(before)
        if before[k] != after[k] and k != "fidelity"
    ]
    return f"`--fidelity verl` changes {'; '.join(changes)}."


def _beside(system: System) -> str:
    rows = [f"| {_cell(b.item)} | {_cell(b.theirs)} | {_cell(b.ours)} | {_cell(b.source)} |" for b in system.beside]
    return "\n".join(["| no setting of ours | theirs | ours | from |", "|---|---|---|---|", *rows]) if rows else ""


def _against(constant: Published, ours: Any) -> str:
    return "same" if agrees(constant.value, ours) and not isinstance(constant.value, Between) else f"**{shown(ours)}**"


def _source(constant: Published) -> str:
    return _cell(constant.source) + (f"; *{_cell(constant.note)}*" if constant.note else "")


def shown(value: Any) -> str:
    """A value as a cell of a markdown table."""
    if value is None or value == [] or value == "":
        return "none"
    if isinstance(value, Between):
        return str(value)
    return f"`{_cell(repr(value) if not isinstance(value, str) else repr(value)[1:-1])}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
