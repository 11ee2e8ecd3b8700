"""A recipe: one Python file that says what a run is.

It defines ``config`` (a ``fastgrpo.config.Config``) and ``reward`` (a function of response text and answer, and of what
else its signature asks for, that returns a `fastgrpo.rewards.Judgement`; or where it is, as ``"module:function"``: its
processes then load only that). It may define

- ``self_test``: (response, answer, judgement) triples that every process must get right before training starts; left
  out, those that the reward was decorated with (``known_answers``), as all of ``fastgrpo.rewards`` are;
- ``prepare(config, base, say)``: makes what the run starts from in the folder ``base``, on the first rank and before
  anything is loaded;
- ``algorithm`` (a ``fastgrpo.algorithm.Algorithm``): the functions that take the place of plain GRPO's parts;
- ``fidelity``: settings that ``--fidelity verl`` changes, by their command-line names;
- ``row``: (problem, answer, solution) -> a row in the schema of its data, for ``--shrink``;
- ``source`` and ``cost``, a line each: whose run it is, and what that took;
- ``ranks``: how many it took, one a GPU, which is what ``--dry_run`` shows it on; nodes have up to eight;
- ``published``: the figures of the paper that the report draws behind the curves.
"""

import importlib.util
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from fastgrpo.algorithm import Algorithm
from fastgrpo.command_line import expanded
from fastgrpo.config import Config, check_types, with_settings
from fastgrpo.data.schemas import verl_row
from fastgrpo.recipe.find import recipe_name, shipped_recipes
from fastgrpo.rewards.judgement import KnownAnswer
from fastgrpo.rewards.known_answers import demands_box
from fastgrpo.rewards.pool.load import load_reward, locate_reward
from fastgrpo.rewards.signature import signature_of


@dataclass(frozen=True)
class Recipe:
    path: Path
    config: Config
    reward: str  # as its processes import it
    prepare: Callable[[Config, Path, Callable[[str], None]], None] | None = None
    published: dict[str, Any] = field(default_factory=dict)
    self_test: Sequence[KnownAnswer] = ()  # empty: the reward's own
    algorithm: Algorithm = field(default_factory=Algorithm)
    fidelity: Mapping[str, Any] = field(default_factory=dict)
    row: Callable[[str, str, str], dict[str, Any]] = verl_row
    about: str = ""  # its docstring; the first line says what it is
    source: str = ""
    cost: str = ""
    ranks: int | None = None
    function: Callable[..., Any] | None = None  # the reward as this process has it, if it does

    @property
    def name(self) -> str:
        return recipe_name(self.path)

    @property
    def given_as(self) -> str:
        """What a command line calls it: the name of a shipped one, else its file."""
        return self.name if shipped_recipes().get(self.name) == self.path else str(self.path)

    def asks_for_row(self) -> bool:
        """Whether the reward asks for the rows of the data, which then need no answers. True of one that cannot be
        loaded too: its processes say why."""
        try:
            return "row" in signature_of(self.function or load_reward(*locate_reward(self.reward))).names
        except (Exception, SystemExit):  # whatever its module raises
            return True

    def demands_box(self) -> bool | None:
        """Whether the reward accepts nothing outside of a box; None where that is not known."""
        if self.function is None and self.reward.startswith("fastgrpo."):
            return demands_box(load_reward(*locate_reward(self.reward)))
        return demands_box(self.function)

    @property
    def reward_name(self) -> str:
        """What the reward is called in messages."""
        return getattr(self.function, "__name__", None) or self.reward.rpartition(":")[2]

    def with_fidelity(self) -> "Recipe":
        """The recipe as the published code ran, where that is not what the paper says.

        Raises ValueError if no such difference is known.
        """
        if not self.fidelity:
            raise ValueError(f"the recipe {self.name} knows no --fidelity verl: its code is not known to differ")
        return replace(self, config=with_settings(self.config, {**self.fidelity, "fidelity": "verl"}))


def load_recipe(path: Path) -> Recipe:
    """Runs a recipe file. Raises ValueError if it lacks ``config`` or ``reward``."""
    module = _run(path)
    config = getattr(module, "config", None)
    if not isinstance(config, Config):
        raise ValueError(f"{path} must define `config = fastgrpo.config.Config(...)`, it has {type(config).__name__}")
    try:
        check_types(config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(reward := getattr(module, "reward", None), str) and not callable(reward):
        raise ValueError(f"{path} must define `reward`, a function of response text and answer")
    return Recipe(
        path,
        config,
        _verifier(path, module),
        prepare=getattr(module, "prepare", None),
        published=getattr(module, "published", {}),
        self_test=getattr(module, "self_test", ()),
        algorithm=_algorithm(path, module),
        fidelity=getattr(module, "fidelity", {}),
        row=getattr(module, "row", verl_row),
        about=(module.__doc__ or "").strip(),
        source=getattr(module, "source", ""),
        cost=getattr(module, "cost", ""),
        ranks=_ranks(path, module),
        function=reward if callable(reward) else None,
    )


def _verifier(path: Path, module: ModuleType) -> str:
    """One of ours is imported from where it is: its processes then need not load all that the recipe does, torch among
    it. Any other comes with the recipe's file, whose code may have to run before it and is read once."""
    function = module.reward
    if isinstance(function, str):
        return expanded(function)
    place, name = getattr(function, "__module__", ""), getattr(function, "__qualname__", "")
    if place.startswith("fastgrpo.") and getattr(sys.modules[place], name, None) is function:
        return f"{place}:{name}"
    return f"{path}:reward"


def _algorithm(path: Path, module: ModuleType) -> Algorithm:
    algorithm = getattr(module, "algorithm", Algorithm())
    if not isinstance(algorithm, Algorithm):
        raise ValueError(f"{path}: `algorithm` must be a fastgrpo.algorithm.Algorithm, got {type(algorithm).__name__}")
    return algorithm


def _ranks(path: Path, module: ModuleType) -> int | None:
    ranks = getattr(module, "ranks", None)
    if ranks is not None and (type(ranks) is not int or ranks < 1):
        raise ValueError(f"{path}: `ranks` must be a number of GPUs of at least 1, got {ranks!r}")
    return ranks


def _run(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever the recipe's code raises
        frames = traceback.extract_tb(error.__traceback__)
        where = next((f for f in reversed(frames) if f.filename == str(path)), frames[-1])
        line = error.lineno if isinstance(error, SyntaxError) else where.lineno
        raise ValueError(f"the recipe {path} cannot be run: line {line}: {type(error).__name__}: {error}") from error
    return module
