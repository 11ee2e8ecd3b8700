"""Where a run changed: lines across all charts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastgrpo.report.read import Run, mapping, number

_MOST_LINES = 60  # of one kind: more would hide the curves


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Lines of one kind. A change after a step stands between this step and the next."""

    label: str  # beside the line
    text: str  # what happened
    after: list[int]  # steps


def marks_of(run: Run) -> list[Mark]:
    """The phases that have begun, the resets of the reference and the points where the run went on after a kill."""
    algorithm, last = mapping(run.about.get("algorithm")), int(run.metrics.steps[-1])
    marks = [*_phases(algorithm.get("phases"), last), *_resets(mapping(algorithm.get("reference_reset")), last)]
    if run.metrics.resumed_after:
        marks.append(Mark(label="resumed", text="the run went on from here", after=run.metrics.resumed_after))
    return marks


def _phases(phases: Any, last: int) -> list[Mark]:
    found = [mapping(phase) for phase in phases] if isinstance(phases, list) else []
    begun = [p for p in found if number(p.get("first_step")) is not None and p["first_step"] < last]
    return [
        Mark(label=f"phase {i}", text=_settings(mapping(phase.get("settings"))), after=[int(phase["first_step"])])
        for i, phase in enumerate(begun, start=2)
    ]


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items()) or "other data"


def _resets(reset: Mapping[str, Any], last: int) -> list[Mark]:
    every = number(reset.get("every_steps"))
    if not every or every < 1 or last <= every:
        return []
    text = "the reference becomes the policy" + (", the optimizer starts anew" if reset.get("clear_optimizer") else "")
    after = list(range(int(every), last, int(every)))
    if len(after) > _MOST_LINES:
        text, after = f"{text}; it does so every {every:,} steps, too often for a line each", []
    return [Mark(label="reset", text=text, after=after)]
