"""What papers and their code say of every system that a recipe reproduces: the table that recipes are tested against.

Typed from the sources, not from the recipes, so that a slip in one of the two shows. Values are as JSON holds them and
as ``fastgrpo.config.flatten`` gives them: a list where the setting is a tuple.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_SAME = object()


@dataclass(frozen=True)
class Published:
    """One constant of a source.

    ``ours``, where it is given, is what the recipe has on purpose instead of ``value``, and ``note`` says why.
    """

    value: Any
    source: str
    ours: Any = _SAME
    note: str = ""

    def __post_init__(self) -> None:
        if self.departs and not self.note:
            raise ValueError(f"a departure from {self.source} needs its reason in `note`")

    @property
    def departs(self) -> bool:
        return self.ours is not _SAME

    @property
    def wanted(self) -> Any:
        return self.ours if self.departs else self.value


@dataclass(frozen=True)
class Between:
    """A source that gives a range: any value of it is as published."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low} to {self.high}"


def agrees(wanted: Any, value: Any) -> bool:
    """Whether a recipe's value is what a source gives: numbers to nine digits, all else exactly."""
    if isinstance(wanted, Between):
        return bool(wanted.low <= value <= wanted.high)
    if isinstance(wanted, float) and isinstance(value, float):
        return math.isclose(wanted, value, rel_tol=1e-9)
    return bool(wanted == value) and isinstance(wanted, bool) == isinstance(value, bool)


@dataclass(frozen=True)
class Beside:
    """What a source says that is no setting of ours, and what becomes of it here."""

    item: str
    theirs: str
    ours: str
    source: str


@dataclass(frozen=True, kw_only=True)
class System:
    """All that is published of one recipe's run."""

    verifier: Published
    """Name of the function that judges, as ``fastgrpo.rewards`` has it."""
    settings: Mapping[str, Published]
    """By the setting's command-line name."""
    algorithm: Mapping[str, Published] = field(default_factory=dict)
    """Parts of the recipe's Algorithm as its ``describe`` gives them, or what is in one: ``shaping.Cycled.on_steps``.
    A part that is neither here nor in ``ours`` must be plain GRPO's."""
    fidelity: Mapping[str, Published] = field(default_factory=dict)
    """What --fidelity verl must change, and to what."""
    ours: Mapping[str, str] = field(default_factory=dict)
    """Settings and parts that no source gives, with the reason for what we took."""
    beside: tuple[Beside, ...] = ()


def at(source: str, **values: Any) -> dict[str, Published]:
    """Constants of one source; ``data__shuffle=True`` is the setting data.shuffle."""
    return {name.replace("__", "."): Published(value, source) for name, value in values.items()}


HOW_IT_IS_RUN: dict[str, str] = {
    "rollout.engine": "what samples, not what is sampled",
    "rollout.tensor_parallel": "how weights lie on GPUs, not what they are",
    "optimizer.reduce_every_microbatch": "the same gradient, for less memory",
    "rollout.gpus": "which GPUs sample",
    "rollout.sleep_level": "memory of engines while the trainer trains",
    "rollout.kv_cache_gib": "memory of engines",
    "rollout.max_sequences": "how many responses are drawn at one time",
    "parallel.replicas": "how weights are sharded",
    "model.family": "architecture of the tiny model of --shrink",
    "model.activation_checkpointing": "memory for time; the gradient is the same",
    "optimizer.tokens_per_microbatch": "how responses are packed; the gradient is the same",
    "objective.rollout_kl_alarm": "when a warning is given",
    "reward.timeout_s": "how long a verdict may take",
    "reward.workers": "processes that judge",
    "evaluation.every_steps": "when accuracy is measured in training",
    "evaluation.samples_per_prompt": "how accuracy is measured in training",
    "evaluation.temperature": "how accuracy is measured in training",
    "evaluation.max_problems": "how accuracy is measured in training",
    "data.held_out": "problems for the accuracy that is measured in training",
    "checkpoint.every_steps": "when weights are kept",
    "checkpoint.keep_last": "how many checkpoints stay",
    "name": "the run folder",
    "fidelity": "set by --fidelity itself",
}
"""Settings that say how a run is carried out and change nothing of what is learned; a recipe is free in them."""


def published() -> dict[str, System]:
    """By the recipe's name."""
    from tests.recipes.sources import dapo, justrl, prorl, questa, simplerl_zoo

    return {**justrl.SYSTEMS, **simplerl_zoo.SYSTEMS, **prorl.SYSTEMS, **questa.SYSTEMS, **dapo.SYSTEMS}
