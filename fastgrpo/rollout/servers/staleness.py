"""Which prompts may be started, and which finished groups a step takes: staleness is bounded here, by counting."""

from dataclasses import dataclass, field

from fastgrpo.types import Group, Prompt, Response, ResponseElsewhere, Sample


@dataclass
class Started:
    """A group that is being drawn, or waits for its step."""

    prompt: Prompt
    version: int  # trainer steps that had made the weights when it was started: no token of it is older
    is_awaited: bool = False  # it was put back before: the next step does not go on without it
    responses: dict[int, Response | ResponseElsewhere] = field(default_factory=dict)  # by index in the group


class StalenessQueue:
    """Groups between their start and their step.

    A group started under the weights of step ``v`` is taken in step ``v + max_staleness`` at the latest (a
    step's number being the steps before it), so no token is ever more than ``max_staleness`` steps older than the
    weights that it trains. Two rules make it so: at most ``(max_staleness + 1) * per_step`` groups are under way, and a
    step takes as many of the oldest ones as later steps would have no room for. Otherwise it takes what is finished,
    the earliest started first. With ``max_staleness`` 1, where all that is started is drawn before weights change,
    groups are taken in the order of their start: what a step trains on does not depend on who was faster.
    """

    def __init__(self, per_step: int, max_staleness: int, group_size: int) -> None:
        self.per_step, self.max_staleness, self.group_size = per_step, max_staleness, group_size
        self.started: dict[int, Started] = {}  # by position, in the order of their start
        self.step = 0

    def num_to_start(self, num_missing: int) -> int:
        """Groups that may be started now, while the step still needs ``num_missing``."""
        return max(0, self.max_staleness * self.per_step + num_missing - len(self.started))

    def start(self, prompt: Prompt, *, again: bool = False) -> None:
        assert prompt.position not in self.started, f"prompt {prompt.position} is under way"
        self.started[prompt.position] = Started(prompt, self.step, again)

    def finish(self, position: int, index: int, response: Response | ResponseElsewhere) -> bool:
        """Notes a response; False if there is one already or nobody asked: it was drawn again after a failure."""
        group = self.started.get(position)
        if group is None or index in group.responses:
            return False
        group.responses[index] = response
        return True

    def is_finished(self, started: Started) -> bool:
        return len(started.responses) == self.group_size

    def take(self, num_groups: int) -> list[Group] | None:
        """The next groups of this step, in the order of their start; None while some of them are not finished."""
        chosen = self._in_order(num_groups) if self.max_staleness == 1 else self._as_finished(num_groups)
        return None if chosen is None else [self._leave(p) for p in list(self.started) if p in chosen]

    def _in_order(self, num_groups: int) -> set[int] | None:
        first = list(self.started)[:num_groups]
        is_ready = len(first) == num_groups and all(self.is_finished(self.started[p]) for p in first)
        return set(first) if is_ready else None

    def _as_finished(self, num_groups: int) -> set[int] | None:
        finished = [p for p, s in self.started.items() if self.is_finished(s)]
        awaited = [p for p, s in self.started.items() if s.is_awaited][:num_groups]
        chosen = set(awaited)
        if not chosen <= set(finished):
            return None
        for version in range(self.step - self.max_staleness, self.step + 1):
            old = {p for p, s in self.started.items() if s.version <= version}
            room_later = (version + self.max_staleness - self.step) * self.per_step
            due = min(len(old) - room_later, num_groups) - len(chosen & old)
            available = [p for p in finished if p in old and p not in chosen]
            if due > len(available):
                return None
            chosen.update(available[: max(0, due)])
        rest = [p for p in finished if p not in chosen]
        if len(chosen) + len(rest) < num_groups:
            return None
        chosen.update(rest[: num_groups - len(chosen)])
        return chosen

    def put_back(self) -> list[int]:
        """Positions of what no step took; it is forgotten here."""
        positions = list(self.started)
        self.started.clear()
        return positions

    def _leave(self, position: int) -> Group:
        started = self.started.pop(position)
        return [Sample(started.prompt, started.responses[k]) for k in range(self.group_size)]
