"""``fastgrpo recipes``: what there is, as a table; and all that one recipe says of itself."""

import re

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fastgrpo.command_line import did_you_mean
from fastgrpo.command_line.console import Page
from fastgrpo.recipe.find import find_recipe, recipe_folders, recipe_names
from fastgrpo.recipe.recipe import Recipe, load_recipe

WIDEST = 100


def print_recipes(part: str) -> None:
    """The recipes whose name has the part; a folder of them as one line, unless it is asked for, and a single recipe
    with all that it says. Raises ValueError where nothing has it."""
    console = Page(highlight=False, markup=False)
    console.width = min(console.width, WIDEST) if console.is_terminal else WIDEST
    names = recipe_names()
    chosen = [name for name in names if part in name]
    if not chosen:
        raise ValueError(
            f"no recipe's name has {part!r}{did_you_mean(part, names) or ':'} `fastgrpo recipes` lists all"
        )
    if part in chosen or len(chosen) == 1:
        _print_one(console, load_recipe(find_recipe(part if part in chosen else chosen[0])))
        return
    folders = {} if part else recipe_folders()
    recipes = [load_recipe(find_recipe(name)) for name in chosen if not name.startswith(tuple(folders))]
    rows = [(r.name, r.about.split("\n")[0].rstrip("."), _first_clause(r.cost)) for r in recipes]
    for folder, about in folders.items():
        count = sum(name.startswith(folder) for name in names)
        rows.append((f"{folder}_*", about.rstrip("."), f"{count} recipes: fastgrpo recipes {folder}"))
    _print_rows(console, rows)


def _print_rows(console: Console, rows: list[tuple[str, str, str]]) -> None:
    """(name, what it is, cost) in one line each where all fit into one, else in two."""
    wide_name, wide_about, wide_cost = (max(map(len, column)) for column in zip(*rows, strict=True))
    fit = wide_name + wide_about + wide_cost + 4 <= console.width
    for name, about, cost in rows:
        middle = f"  {about:<{wide_about}}  " if fit else "  "
        console.print(Text.assemble((f"{name:<{wide_name}}", "bold"), middle, (cost, "dim")))
        if not fit:
            console.print(Padding.indent(about, 2))


def _print_one(console: Console, recipe: Recipe) -> None:
    facts = {"source": recipe.source, "cost": recipe.cost, "verifier": recipe.reward, "file": str(recipe.path)}
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, fact in facts.items():
        table.add_row(name, fact)
    console.print(recipe.name, style="bold")
    for paragraph in recipe.about.split("\n\n"):
        console.print("\n" + " ".join(paragraph.split()))
    console.print()
    console.print(table)


def _first_clause(cost: str) -> str:
    return re.split(r" \(|[,;:] ", cost)[0]
