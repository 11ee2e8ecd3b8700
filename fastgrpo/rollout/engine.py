"""What every rollout engine does."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from torch import Tensor

from fastgrpo.types import Group, Prompt, Sampling


class RolloutEngine(Protocol):
    """Draws responses from the weights that it was last given. Tokens in, tokens out."""

    knows_entropy: bool
    """Whether responses carry their mean entropy; where not, the trainer computes it."""

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, policy_version: int) -> list[Group]:
        """One group per prompt, in order, each with ``sampling.group_size`` responses."""
        ...

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Overwrites the engine's weights in place, by checkpoint name. Raises KeyError for a name it lacks."""
        ...
