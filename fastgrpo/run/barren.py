"""A run's first steps in which there was nothing to learn: counted, explained, and the run's end after too many."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastgrpo.algorithm.no_signal import Cause, Circumstances, causes_of
from fastgrpo.algorithm.signal_counts import SignalCounts, groups_of
from fastgrpo.config import Config
from fastgrpo.recipe import Recipe
from fastgrpo.trainer import Progress, TrainingError
from fastgrpo.types import Sample

BOX = "\\boxed"


@dataclass(frozen=True)
class BarrenStep:
    """A step in which there was nothing to learn, and why; the same on every rank."""

    counts: SignalCounts
    causes: list[Cause]

    def warning(self) -> str:
        """What to add to the step's warning: its most certain causes; empty if none is known."""
        return "".join(f": {cause.why}" for cause in self.causes[:1]) + "".join(f"; {c.why}" for c in self.causes[1:2])

    def ending(self, num_steps: int, recipe: str) -> str:
        """Why the run ends after so many steps, and what to change."""
        why = "; ".join(cause.why for cause in self.causes[:2]) or "no group met the recipe's has_signal"
        mends = "; or ".join(mend for cause in self.causes[:2] for mend in cause.mends[:2])
        return (
            f"in none of the first {num_steps} steps there was anything to learn. In the last one {why}. "
            f"{f'What may help: {mends}. ' if mends else ''}`fastgrpo inspect {recipe}` shows responses, and tries "
            f"other temperatures and verifiers. --max_barren_steps 0 lets a run go on"
        )


def is_barren(metrics: dict[str, Any], by_advantages_alone: bool) -> bool:
    """Whether it is certain that a step of these metrics taught nothing: no group was trained on, or none of the
    responses had an advantage and the loss has no other terms."""
    nothing_trained = metrics["groups_kept"] == 0
    return nothing_trained or (by_advantages_alone and metrics["zero_advantage_frac"] == 1.0)


def count_barren(progress: Progress, barren: bool) -> None:
    """Counts a step that was just done, if there was nothing to learn in it and in all before it."""
    if barren and progress.barren_steps == progress.step - 1:
        progress.barren_steps = progress.step


def explain(samples: Sequence[Sample], recipe: Recipe, config: Config, last_failure: str) -> BarrenStep:
    """Why a step of these samples, trained on or left out, had nothing to learn."""
    counts = SignalCounts.of(groups_of(samples, config.rollout.group_size))
    prompt = samples[0].prompt.text if samples else ""
    return BarrenStep(counts, causes_of(counts, circumstances_of(recipe, config, prompt, last_failure)))


def circumstances_of(recipe: Recipe, config: Config, prompt: str, last_failure: str) -> Circumstances:
    """What is known of a run besides its responses; ``prompt`` is the text of one, ``last_failure`` of the reward."""
    return Circumstances(
        reward=recipe.reward_name,
        demands_box=recipe.demands_box(),
        temperature=config.rollout.temperature,
        max_response_tokens=config.rollout.max_response_tokens,
        runs_max_response_tokens=config.rollout.max_response_tokens,
        group_size=config.rollout.group_size,
        chat_template=config.data.chat_template,
        asks_for_box=BOX in prompt,
        last_failure=last_failure,
    )


def require_signal(barren: BarrenStep, progress: Progress, config: Config, recipe: str) -> None:
    """Raises TrainingError, on every rank, if the run's first ``config.max_barren_steps`` steps taught nothing."""
    most = config.max_barren_steps
    if most and progress.barren_steps == progress.step >= most and progress.step < config.steps:
        raise TrainingError(barren.ending(progress.step, recipe))
