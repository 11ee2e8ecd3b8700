"""What happens between the steps of a run: a function of the steps done, so that a resumed run does the same."""

from collections.abc import Iterator
from dataclasses import dataclass

from fastgrpo.algorithm import Algorithm
from fastgrpo.config import Config
from fastgrpo.data import PromptStream
from fastgrpo.trainer import Trainer


@dataclass(frozen=True)
class RunSchedule:
    """The phases and the reference resets of an algorithm."""

    algorithm: Algorithm
    config: Config
    streams: list[PromptStream]  # of every phase, the first included

    def before_step(self, trainer: Trainer) -> Iterator[str]:
        """Does what is due before the trainer's next step, and says it."""
        step = trainer.progress.step
        for number, phase in enumerate(self.algorithm.phases, start=1):
            if phase.first_step == step:
                self._enter(trainer, number)
                settings = ", ".join(f"--{name} {value}" for name, value in phase.settings.items())
                yield f"from here on {settings or 'other data'}"
        reset = self.algorithm.reference_reset
        if reset is not None and reset.is_due(step):
            trainer.reset_reference(clear_optimizer=reset.clear_optimizer)
            yield "the reference is the policy as it is now"

    def go_on(self, trainer: Trainer) -> None:
        """Puts a trainer into the phase that it was saved in: `before_step` begins those that begin there."""
        begun = sum(phase.first_step < trainer.progress.step for phase in self.algorithm.phases)
        if begun:
            self._enter(trainer, begun)

    def _enter(self, trainer: Trainer, number: int) -> None:
        trainer.set_config(self.algorithm.configs(self.config)[number])
        trainer.rollouts.prompts.stream = self.streams[number]
