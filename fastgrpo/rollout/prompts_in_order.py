"""Which prompts come next: those put back first, then the data's order."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fastgrpo.data import PromptStream
from fastgrpo.types import Prompt


@dataclass
class PromptsInOrder:
    """Every position of the endless order is handed out once, and once more if it is put back."""

    stream: PromptStream
    next_position: int = 0
    put_back: list[int] = field(default_factory=list)

    def take(self, count: int) -> list[Prompt]:
        again, self.put_back = self.put_back[:count], self.put_back[count:]
        start, fresh = self.next_position, count - len(again)
        self.next_position += fresh
        return [*(self.at(p) for p in again), *self.stream.prompts_at(start, fresh)]

    def at(self, position: int) -> Prompt:
        return self.stream.prompts_at(position, 1)[0]

    def give_back(self, positions: Sequence[int]) -> None:
        """Takes back prompts whose responses were not drawn to their end: the first of the next step."""
        self.put_back = sorted({*self.put_back, *positions})

    def state(self) -> dict[str, Any]:
        return {"next_position": self.next_position, "put_back": self.put_back}

    def load_state(self, state: dict[str, Any]) -> None:
        self.next_position, self.put_back = state["next_position"], list(state["put_back"])
