"""Writes docs/fidelity.md and docs/fidelity_full.md from the published runs and the recipes.

``python -m tests.recipes.page`` writes both. People write fidelity.md, except what stands between two markers;
fidelity_full.md is written here as a whole. A test fails while a page is not what this file makes.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.recipes.published import Constant, Range, System, Words, agrees
from tests.recipes.recipe_values import shipped, value_at, values_of
from tests.recipes.sources import RUNS, SYSTEMS

PAGE = Path(__file__).parents[2] / "docs" / "fidelity.md"
FULL_PAGE = PAGE.with_name("fidelity_full.md")
_BETWEEN_MARKERS = re.compile(r"<!-- table: (?P<title>.+?) -->\n.*?<!-- end -->", re.DOTALL)
_FIDELITY_HEAD = ("setting", "ours", "ours with `--fidelity verl`", "source")
_FULL_PAGE_HEAD = """# Fidelity: every setting

Every setting that a source gives, recipe by recipe. [fidelity.md](fidelity.md) has the settings that differ, and how to
reproduce a published result. `python -m tests.recipes.page` writes both pages: do not edit this one.

Where a table does not name the recipes of a row, it has the row for all recipes of its section. A recipe that varies
another one has only the rows in which the two differ.
"""

Row = tuple[str, ...]


def pages() -> dict[Path, str]:
    """Each page's path, with the text that it must have."""
    return {PAGE: with_tables(PAGE.read_text()), FULL_PAGE: full_page()}


def with_tables(page: str) -> str:
    """The short page with its tables made anew: ``<!-- table: TITLE -->`` ... ``<!-- end -->`` holds a system's."""
    systems = {system.title: system for system in SYSTEMS}
    titles = [found["title"] for found in _BETWEEN_MARKERS.finditer(page)]
    if sorted(titles) != sorted(systems):
        raise ValueError(f"the page must have one table for each of {sorted(systems)}, it has {sorted(titles)}")

    def table(found: re.Match[str]) -> str:
        system = systems[found["title"]]
        return f"<!-- table: {system.title} -->\n{_short_section(system)}\n<!-- end -->"

    return _BETWEEN_MARKERS.sub(table, page)


def full_page() -> str:
    """The page with all rows of all recipes."""
    return _FULL_PAGE_HEAD + "".join(f"\n## {system.title}\n\n{_full_section(system)}\n" for system in SYSTEMS)


def anchor(title: str) -> str:
    """A heading's name in a link, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _short_section(system: System) -> str:
    parts = [
        _table(system, ("setting", "theirs", "ours", "why"), _differing_settings),
        _table(system, ("what else differs", "theirs", "ours"), _differing_details),
        _table(system, _FIDELITY_HEAD, _fidelity),
        _how_many_are_the_same(system),
    ]
    return "\n\n".join(part for part in parts if part)


def _full_section(system: System) -> str:
    recipes = ", ".join(f"`{name}`" for name in system.runs)
    parts = [
        f"Recipes: {recipes}." if len(system.runs) > 1 else f"Recipe: {recipes}.",
        _table(system, ("setting", "theirs", "ours", "source"), _settings),
        _table(system, ("setting that no source gives", "ours", "why"), _chosen_settings),
        _table(system, ("what is no setting", "theirs", "ours", "source"), _details),
        _table(system, _FIDELITY_HEAD, _fidelity),
    ]
    return "\n\n".join(part for part in parts if part)


def _table(system: System, head: Row, rows_of: Callable[[str], Sequence[Row]]) -> str:
    """A table with the rows of all recipes of the system, each row once. A last column says whose it is, where it is
    not everybody's. A recipe's row that its base has too is left out."""
    recipes_of: dict[Row, list[str]] = {}
    for name, run in system.runs.items():
        known = rows_of(run.base) if run.base else []
        for row in rows_of(name):
            if row not in known:
                recipes_of.setdefault(row, []).append(name)
    rows = sorted(recipes_of, key=lambda row: row[0].strip("`"))
    if any(len(names) < len(system.runs) for names in recipes_of.values()):
        head, rows = (*head, "recipes"), [(*row, _whose(recipes_of[row], list(system.runs))) for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)) if rows else ""


def _whose(names: list[str], of_all: list[str]) -> str:
    others = [name for name in of_all if name not in names]
    if not others:
        return "all"
    listed = ", ".join(f"`{name}`" for name in (others if len(others) < len(names) else names))
    return f"all but {listed}" if len(others) < len(names) else listed


def _differing_settings(name: str) -> Sequence[Row]:
    values = values_of(shipped(name))
    published = [
        (f"`{path}`", shown(constant.value), _ours(constant, value_at(values, path)), _cell(constant.note))
        for path, constant in RUNS[name].constants.items()
        if not _is_the_same(constant, value_at(values, path))
    ]
    return published + [(path, "not given", ours, why) for path, ours, why in _chosen_settings(name)]


def _differing_details(name: str) -> list[Row]:
    return [(_cell(d.what), _cell(d.theirs), _cell(d.ours)) for d in RUNS[name].details if d.differs]


def _how_many_are_the_same(system: System) -> str:
    counts = set()
    for name, run in system.runs.items():
        values = values_of(shipped(name))
        counts.add(sum(_is_the_same(constant, value_at(values, path)) for path, constant in run.constants.items()))
    number = " to ".join(str(n) for n in sorted({min(counts), max(counts)}))
    of = "of each recipe " if len(system.runs) > 1 else ""
    return f"The other {number} settings {of}are as published ([full table]({FULL_PAGE.name}#{anchor(system.title)}))."


def _settings(name: str) -> list[Row]:
    values = values_of(shipped(name))
    return [
        (f"`{path}`", shown(constant.value), _ours(constant, value_at(values, path)), _source(constant))
        for path, constant in RUNS[name].constants.items()
    ]


def _chosen_settings(name: str) -> list[tuple[str, str, str]]:
    values = values_of(shipped(name))
    return [(f"`{path}`", shown(values[path]), _cell(why)) for path, why in RUNS[name].chosen.items()]


def _details(name: str) -> list[Row]:
    return [(_cell(d.what), _cell(d.theirs), _cell(d.ours), _cell(d.source)) for d in RUNS[name].details]


def _fidelity(name: str) -> list[Row]:
    if not RUNS[name].fidelity:
        return []
    before, after = values_of(shipped(name)), values_of(shipped(name).with_fidelity())
    return [
        (f"`{path}`", shown(before[path]), shown(after[path]), _source(constant))
        for path, constant in RUNS[name].fidelity.items()
    ]


def _is_the_same(constant: Constant, ours: Any) -> bool:
    """Whether the recipe has what the source has, and no note says that something differs all the same."""
    return not constant.differs and not constant.note and agrees(constant.value, ours)


def _ours(constant: Constant, value: Any) -> str:
    return "the same" if not constant.differs and agrees(constant.value, value) else f"**{shown(value)}**"


def _source(constant: Constant) -> str:
    return _cell(constant.source) + (f". *{_cell(constant.note)}*" if constant.note else "")


def shown(value: Any) -> str:
    """A value as a cell shows it."""
    if value is None or value == [] or value == "":
        return "none"
    if isinstance(value, Range | Words):
        return _cell(str(value))
    if isinstance(value, list) and all(isinstance(v, Mapping) for v in value):
        return ", ".join(shown(v) for v in value)
    return _cell(f"`{_code(value)}`")


def _code(value: Any) -> str:
    """A value as a recipe says it: ``{"is": "Reset", "every": 3}`` is ``Reset(every=3)``."""
    if isinstance(value, str):
        return repr(value)[1:-1]
    if isinstance(value, float):
        return min(repr(value), f"{value:.4g}", key=len) if len(repr(value)) > 8 else repr(value)
    if isinstance(value, Mapping) and "is" in value:
        return f"{value['is']}({', '.join(f'{k}={_code(v)}' for k, v in value.items() if k != 'is')})"
    return repr(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text)
