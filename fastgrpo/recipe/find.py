"""Where recipes lie: in a file of one's own, or in the package ``fastgrpo_recipes``, also in a folder of it."""

import ast
import importlib.util
from pathlib import Path

from fastgrpo.command_line import did_you_mean, expanded


def find_recipe(name: str) -> Path:
    """A recipe by its path, or one that comes with the package by its name. Raises ValueError with the nearest."""
    path, shipped = Path(expanded(name)), shipped_recipes()
    if path.is_file() and path.suffix == ".py":
        return path.resolve()
    stem = "_".join(path.with_suffix("").parts if path.suffix == ".py" else path.parts).removeprefix("recipes_")
    if stem in shipped:
        return shipped[stem]
    raise ValueError(
        f"no recipe {name!r}{did_you_mean(stem, list(shipped)) or ':'} `fastgrpo recipes` lists those that come with "
        f"fastgrpo, and one of your own is given as its Python file"
    )


def recipe_name(path: Path) -> str:
    """What a recipe is called on the command line: a shipped one's folder is the beginning of its name."""
    return next((name for name, shipped in shipped_recipes().items() if shipped == path), path.stem)


def recipe_names() -> list[str]:
    """The names of the recipes that come with the package."""
    return list(shipped_recipes())


def recipe_folders() -> dict[str, str]:
    """The folders that recipes of one kind lie in, and what a line of each says."""
    docstrings = {path.parent.name: path.read_text() for path in sorted(_root().glob("*/__init__.py"))}
    return {name: (ast.get_docstring(ast.parse(text)) or "").split("\n")[0] for name, text in docstrings.items()}


def shipped_recipes() -> dict[str, Path]:
    """The files of the package's recipes by their names, in order. A file that begins with _ is none of them."""
    root = _root()
    paths = [p for p in root.rglob("*.py") if not p.name.startswith("_")]
    return dict(sorted(("_".join(p.relative_to(root).with_suffix("").parts), p.resolve()) for p in paths))


def _root() -> Path:
    spec = importlib.util.find_spec("fastgrpo_recipes")
    if spec is None or spec.origin is None:
        raise ValueError("no package fastgrpo_recipes is installed: run `pip install -e kernels -e .` in the checkout")
    return Path(spec.origin).parent
