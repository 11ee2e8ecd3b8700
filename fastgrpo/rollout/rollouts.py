"""Where a step's responses come from, as the trainer sees it."""

from collections.abc import Sequence
from typing import Any, Protocol

from fastgrpo.algorithm.judging import Judging
from fastgrpo.config import Config
from fastgrpo.rollout.prompts_in_order import PromptsInOrder
from fastgrpo.types import Group, Prompt, Sampling


class Rollouts(Protocol):
    """All ranks call every method, in the same order; each gets the groups that it judges.

    ``judging`` is told of every response of a step as soon as it is finished, on the rank that gets its group, and of
    groups that no step will take.
    """

    prompts: PromptsInOrder
    sampling: Sampling
    judging: Judging | None

    def set_config(self, config: Config, sampling: Sampling) -> None:
        """Goes on, between two steps, with another number, size, length and temperature of groups."""
        ...

    def begin_step(self, step: int) -> None:
        """Starts what may be started under the trainer's weights, which ``step`` steps made."""
        ...

    def take(self, num_groups: int) -> list[Group]:
        """The next groups that this rank judges; over all ranks they are ``num_groups``."""
        ...

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, judging: Judging | None = None) -> list[Group]:
        """The groups of these prompts that this rank judges, apart from the training's."""
        ...

    def release_memory(self) -> None:
        """Lets an engine in this process give up memory until the next sync: the step has its groups."""
        ...

    def drain(self) -> None:
        """Waits for what must be drawn to its end before the weights may change."""
        ...

    def sync(self, policy_version: int) -> None:
        """Writes the trainer's current weights into every engine."""
        ...

    def compare(self) -> None:
        """Raises WeightMismatch if an engine does not hold the trainer's weights, bit for bit in its dtype."""
        ...

    @property
    def just_compared(self) -> bool:
        """Whether the last sync compared all weights."""
        ...

    def metrics(self) -> dict[str, float]:
        """Counts of what became of the prompts since ``begin_step``."""
        ...

    def state(self) -> dict[str, Any]:
        """What a resumed run must know."""
        ...

    def load_state(self, state: dict[str, Any]) -> None: ...

    def close(self) -> None: ...
