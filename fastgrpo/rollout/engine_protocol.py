"""What every rollout engine does."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from torch import Tensor

from fastgrpo.types import Request, Response


class RolloutEngine(Protocol):
    """Draws responses from the weights that it was last given. Tokens in, tokens out."""

    not_in_place: str
    """Why weights are not written in place but loaded by the engine's own means; empty where they are."""

    def submit(self, requests: Sequence[Request]) -> None:
        """Queues requests; ``step`` draws them."""
        ...

    def step(self) -> list[tuple[int, Response]]:
        """Draws the next token of every response under way. Returns those that ended, each with its request's id."""
        ...

    def cancel(self, ids: Iterable[int]) -> None:
        """Forgets requests, finished or not."""
        ...

    def is_unfinished(self) -> bool: ...

    def write_weights(self, weights: Iterable[tuple[str, Tensor]], policy_version: int) -> None:
        """Overwrites the engine's weights in place, by checkpoint name. What is being drawn goes on under them.

        Raises KeyError for a name it lacks.
        """
        ...

    def checksums(self) -> dict[str, int]:
        """`weight_sync.checksum` of every weight as the engine holds it, by checkpoint name."""
        ...

    def release_memory(self) -> None:
        """Gives up the memory that the settings say. Nothing is being drawn, nor will be until weights were written."""
        ...

    def close(self) -> None:
        """Frees what it holds. Nothing may be called afterwards."""
        ...
