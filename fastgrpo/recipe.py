"""A recipe: one Python file that says what a run is.

It defines ``config`` (a ``fastgrpo.config.Config``) and ``reward`` (a function of response text and answer that says
whether the response is right). It may define

- ``self_test``: (response, answer, verdict) triples that every verifier process must get right before training starts;
- ``prepare(config, base, say)``: makes what the run starts from in the folder ``base``, on the first rank and before
  anything is loaded;
- ``published``: the figures of the paper that the report draws behind the curves.
"""

import importlib.util
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from fastgrpo.config import Config


@dataclass(frozen=True)
class Recipe:
    path: Path
    config: Config
    prepare: Callable[[Config, Path, Callable[[str], None]], None] | None = None
    published: dict[str, Any] = field(default_factory=dict)
    self_test: Sequence[tuple[str, str, bool]] = ()

    @property
    def reward(self) -> str:
        """The verifier as its processes import it."""
        return f"{self.path}:reward"


def find_recipe(name: str) -> Path:
    """A recipe by its path, or one that comes with the package by its name. Raises ValueError with what there is."""
    shipped = shipped_recipes()
    for candidate in (Path(name), shipped / Path(name).name, shipped / f"{name}.py"):
        if candidate.is_file() and candidate.suffix == ".py":
            return candidate.resolve()
    names = ", ".join(sorted(p.stem for p in shipped.glob("*.py") if p.stem != "__init__"))
    raise ValueError(f"no recipe {name!r}: give a Python file, or the name of one that comes with fastgrpo ({names})")


def shipped_recipes() -> Path:
    spec = importlib.util.find_spec("fastgrpo_recipes")
    if spec is None or spec.origin is None:
        raise ValueError("the package fastgrpo_recipes is not installed: run `pip install -e .` in the checkout")
    return Path(spec.origin).parent


def load_recipe(path: Path) -> Recipe:
    """Runs a recipe file. Raises ValueError if it lacks ``config`` or ``reward``."""
    module = _run(path)
    config = getattr(module, "config", None)
    if not isinstance(config, Config):
        raise ValueError(f"{path} must define `config = fastgrpo.config.Config(...)`, it has {type(config).__name__}")
    if not callable(getattr(module, "reward", None)):
        raise ValueError(f"{path} must define `reward`, a function (response text, answer) -> bool")
    return Recipe(
        path,
        config,
        prepare=getattr(module, "prepare", None),
        published=getattr(module, "published", {}),
        self_test=getattr(module, "self_test", ()),
    )


def _run(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever its author's code raises is the author's to hear
        where = traceback.extract_tb(error.__traceback__)[-1]
        line = error.lineno if isinstance(error, SyntaxError) else where.lineno
        raise ValueError(f"the recipe {path} cannot be run: line {line}: {type(error).__name__}: {error}") from error
    return module
