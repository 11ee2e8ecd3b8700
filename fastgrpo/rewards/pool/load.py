"""A reward by its name -> the function, in the process that calls it."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

Reward = Callable[..., Any]


def locate_reward(reward: str) -> tuple[str, bytes | None]:
    """The name with an absolute path, and the file's content if it names a file."""
    place, _, function = reward.rpartition(":")
    if not place or not function.isidentifier():
        raise ValueError(f"a reward is 'package.module:function' or '/path/to/recipe.py:function', got {reward!r}")
    if not place.endswith(".py"):
        return reward, None
    path = Path(place).expanduser().absolute()
    if not path.is_file():
        raise ValueError(f"no file {path}, named by the reward {reward!r}")
    return f"{path}:{function}", path.read_bytes()


def load_reward(reward: str, source: bytes | None) -> Reward:
    """The function of this name. Raises whatever its module raises, and ValueError if it has none of the name."""
    module_name, _, function_name = reward.rpartition(":")
    module = importlib.import_module(module_name) if source is None else _run_file(module_name, source)
    function: Reward | None = getattr(module, function_name, None)
    if not callable(function):
        of_its_own = (
            name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__
        )
        callables = [name for name in of_its_own if callable(getattr(module, name)) and not name.startswith("_")]
        raise ValueError(f"{module_name} has no function {function_name!r}; it has {', '.join(callables) or 'none'}")
    return function


def _run_file(path: str, source: bytes) -> ModuleType:
    """The module of a Python file. The pool has read the file once, so an edit during the run changes no verdict."""
    module = ModuleType("fastgrpo_verifier_file")
    module.__file__ = path
    sys.modules[module.__name__] = module  # dataclasses look there
    exec(compile(source, path, "exec", dont_inherit=True), module.__dict__)
    return module
