"""What a recipe puts in place of the parts of plain GRPO: small functions and data that it names.

The defaults are JustRL's. Nothing of what a recipe leaves out is loaded, computed or asked for in its steps.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from inspect import signature
from types import FunctionType
from typing import Any, Self

import numpy as np

from fastgrpo.algorithm.advantages import ADVANTAGES
from fastgrpo.algorithm.outcomes import MetricFunction, RewardFunction
from fastgrpo.algorithm.own_loss import TokenLoss
from fastgrpo.algorithm.selection import scores_differ
from fastgrpo.algorithm.shaping import scaled
from fastgrpo.config import RULES, Config, DataConfig, ObjectiveConfig, refuse_old_names, with_paths, with_settings
from fastgrpo.types import Prompt

HasSignal = Callable[[np.ndarray], bool]
ProblemText = Callable[[Prompt, DataConfig], str | None]

PHASED = {name for name, rules in RULES.items() if rules.get("may_change")}
"""Settings that may change in the middle of a run."""


@dataclass(frozen=True)
class Phase:
    """Settings that hold from a step on, until another phase changes them: ``Phase(2000, {"rollout.group_size": 32})``.

    ``first_step`` counts the steps before it.
    """

    first_step: int
    settings: Mapping[str, Any]

    def __post_init__(self) -> None:
        refuse_old_names(self.settings.items())
        if unknown := sorted(self.settings.keys() - PHASED):
            raise ValueError(
                f"a phase cannot change {', '.join(unknown)} in the middle of a run, it can change "
                f"{', '.join(sorted(PHASED))}"
            )
        if type(self.first_step) is not int or self.first_step < 1:
            raise ValueError(
                f"a phase begins after step 1 or later, got {self.first_step}: what holds before is config"
            )


@dataclass(frozen=True)
class ReferenceReset:
    """The reference becomes the current policy after every ``every_steps`` steps (ProRL, arXiv 2505.24864, section
    3.2). ``clear_optimizer``: AdamW's moments start anew with it, as in ProRL's first version and not in its second."""

    every_steps: int
    clear_optimizer: bool = False

    def __post_init__(self) -> None:
        if type(self.every_steps) is not int or self.every_steps < 1:
            raise ValueError(f"a reference is reset every 1 or more steps, got {self.every_steps}")

    def is_due(self, step: int) -> bool:
        """Whether the reference is reset after ``step`` steps."""
        return step > 0 and step % self.every_steps == 0

    def scaled(self, tokens: float, steps: float) -> Self:
        return replace(self, every_steps=max(1, round(self.every_steps * steps)))


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    advantages: RewardFunction | None = None
    """(rewards [N], outcomes) -> advantages [N]; None: what --objective.advantage names."""
    loss: TokenLoss | None = None
    """(`Tokens`) -> loss of each response token [R], in the place of the surrogate that the settings name; the settings
    say how an update's loss is made of it, and may add a divergence and a bonus for entropy."""
    shaping: tuple[RewardFunction, ...] = ()
    """What is done to the verifier's rewards, in this order."""
    has_signal: HasSignal = scores_differ
    """Whether a group has something to teach, from the scores [group_size] float64 that its responses got, 1 or 0 for
    right or wrong, without those that got no reward. What becomes of one that has not is the setting
    --rollout.zero_signal_groups."""
    reference_reset: ReferenceReset | None = None
    """When the reference of --objective.kl_coef becomes the policy; None: it stays the run's first weights."""
    problem_text: ProblemText | None = None
    """What a prompt asks, from a problem; None where that row is of no use. Left out: the problem as it stands."""
    phases: tuple[Phase, ...] = ()
    """Settings that change in the run, in the order of their first steps."""
    metrics: MetricFunction | tuple[MetricFunction, ...] = ()
    """(rewards [N], outcomes) -> name -> number, of every step; what NAME stands for is recorded as ``recipe/NAME``."""

    def __post_init__(self) -> None:
        if _is_function(self.metrics):
            object.__setattr__(self, "metrics", (self.metrics,))
        if not isinstance(self.metrics, tuple) or not all(map(_is_function, self.metrics)):
            raise ValueError(f"metrics must be a function or a tuple of functions, got {self.metrics!r}")
        if not isinstance(self.shaping, tuple) or not all(map(_is_function, self.shaping)):
            raise ValueError(f"shaping must be a tuple of functions, got {self.shaping!r}")
        if not isinstance(self.phases, tuple) or not all(isinstance(p, Phase) for p in self.phases):
            raise ValueError(f"phases must be a tuple of Phase(first_step, settings), got {self.phases!r}")
        for name in ("advantages", "loss", "has_signal", "problem_text"):
            value = getattr(self, name)
            if not _is_function(value) and not (value is None and name != "has_signal"):
                raise ValueError(f"{name} must be a function, got {value!r}")
        parts = [("advantages", self.advantages), *(("shaping", shape) for shape in self.shaping)]
        for part, function in [*parts, *(("metrics", metric) for metric in self.metrics)]:
            if function is not None:
                _require_signature(part, function)

    def advantages_of(self, objective: ObjectiveConfig) -> RewardFunction:
        """The recipe's own function, or the one that the setting names."""
        return self.advantages or ADVANTAGES[objective.advantage]

    def config_at(self, config: Config, step: int) -> Config:
        """The settings after ``step`` steps."""
        for phase in self.phases:
            if phase.first_step <= step:
                config = with_paths(with_settings(config, phase.settings))
        return config

    def configs(self, config: Config) -> list[Config]:
        """The settings of every phase, the first included. Raises ValueError where phases are out of order."""
        starts = [0, *(p.first_step for p in self.phases)]
        if starts != sorted(set(starts)):
            raise ValueError(f"the phases of a run must begin one after the other, got the first steps {starts[1:]}")
        return [self.config_at(config, start) for start in starts]

    def needs_reference(self, config: Config) -> bool:
        return any(c.objective.kl_coef > 0 for c in self.configs(config))

    def widest(self, config: Config) -> Config:
        """The settings with the longest response of any phase, which an engine must have room for."""
        longest = max(c.rollout.max_response_tokens for c in self.configs(config))
        return with_settings(config, {"rollout.max_response_tokens": longest})

    def describe(self) -> dict[str, Any]:
        """What a run folder records, as JSON holds it, and a resumed run must equal: every function by its name, but
        for metrics, which change nothing of a run."""
        return {f.name: _described(getattr(self, f.name)) for f in fields(self) if f.name != "metrics"}

    def scaled(self, tokens: float, steps: float) -> Self:
        """The algorithm of a run with responses ``tokens`` times as long and ``steps`` times as many steps."""
        return replace(
            self,
            shaping=tuple(scaled(s, tokens, steps) for s in self.shaping),
            reference_reset=scaled(self.reference_reset, tokens, steps),
        )


def _is_function(value: Any) -> bool:
    """Whether it is a technique, and not its class, which somebody forgot to call."""
    return callable(value) and not isinstance(value, type)


def _require_signature(part: str, function: Callable[..., Any]) -> None:
    """Raises ValueError for a function that cannot be called with rewards and outcomes."""
    try:
        signature(function).bind(None, None)
        if list(signature(function).parameters)[1] == "group_size":  # as advantages were called before
            raise TypeError
    except TypeError:
        name = getattr(function, "__qualname__", type(function).__qualname__)
        raise ValueError(f"{part} must take (rewards, outcomes), got {name}{signature(function)}") from None


def _described(value: Any) -> Any:
    if is_dataclass(value):
        return {"is": type(value).__name__, **{f.name: _described(getattr(value, f.name)) for f in fields(value)}}
    if isinstance(value, tuple | list):
        return [_described(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): _described(v) for k, v in value.items()}
    if isinstance(value, partial):
        return {"is": "partial", "of": _described(value.func), "with": _described([value.args, value.keywords])}
    if isinstance(value, FunctionType):
        return _described_function(value)
    if isinstance(value, np.generic):
        return value.item()
    return value if value is None or isinstance(value, str | int | float) else type(value).__qualname__


def _described_function(function: FunctionType) -> Any:
    """The function's name; with its code, defaults and what it encloses, if it has none or was made inside another."""
    name = function.__qualname__
    if "<" not in name:
        return name
    enclosed = [_described(cell.cell_contents) for cell in function.__closure__ or ()]
    return {"is": name, "code": function.__code__.co_code.hex(), "constants": repr(function.__code__.co_consts),
            "defaults": _described([function.__defaults__, function.__kwdefaults__]), "encloses": enclosed}  # fmt: skip
