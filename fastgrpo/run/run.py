"""The steps of a run, and everything around a step that is not the algorithm."""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastgrpo.config import Config
from fastgrpo.json_lines import write_json
from fastgrpo.policy.mismatch import mismatch_warning
from fastgrpo.ranks.signals import Interrupted, signals_noted
from fastgrpo.recipe import Recipe
from fastgrpo.report import write_report
from fastgrpo.run.barren import BarrenStep, count_barren, explain, is_barren, require_signal
from fastgrpo.run.checkpoint import Checkpointer, newest_intact
from fastgrpo.run.display import Display
from fastgrpo.run.folder import RunFolder
from fastgrpo.run.records import rollout_rows, summary_of
from fastgrpo.run.schedule import RunSchedule
from fastgrpo.track import TrackingProcess
from fastgrpo.trainer import StepSamples, Trainer
from fastgrpo.types import Prompt, Sample

MANY_FAILURES = 0.01
"""A reward that fails on a larger share of a step's responses is worth a warning."""


@dataclass
class Run:
    """The steps of a run, and everything around a step that is not the algorithm."""

    recipe: Recipe
    config: Config
    folder: RunFolder
    display: Display
    trainer: Trainer
    checkpointer: Checkpointer
    held_out: list[Prompt]
    schedule: RunSchedule
    trackers: TrackingProcess | None = None

    def resume_or_start(self) -> None:
        """Loads the newest checkpoint, or evaluates before the first step."""
        path = self._checkpoint_to_resume() if self.config.resume else None
        if path is not None:
            with self._phase("start", self.config.deadline.start_s):
                self.trainer.progress, rollouts = self.checkpointer.load(path, self.trainer.learner)
                self.schedule.go_on(self.trainer)
                self.trainer.sync(self.trainer.progress.step)
                self.trainer.rollouts.load_state(rollouts)  # after it: what was under way is drawn at once
            self.display.say(f"continuing from {path}")
        if self.trainer.ranks.is_first:
            self.folder.metrics.keep_until(self.trainer.progress.step if path else -1)
            self.folder.rollouts.keep_until(self.trainer.progress.step if path else -1)
            if self.config.track:
                self.trackers = TrackingProcess(self.folder.path, self.config.track, self.display.say)
        if path is None:
            self._evaluate_before()

    def _checkpoint_to_resume(self) -> Path | None:
        """The newest intact checkpoint, chosen on the first rank: others must not see another state of the folder."""

        def choose() -> list[str | None]:
            if not self.trainer.ranks.is_first:
                return []
            path, complaints = newest_intact(self.folder.checkpoints, self.checkpointer.run)
            for complaint in complaints:
                self.display.say(complaint)
            if path is None and complaints:
                raise ValueError(
                    f"no checkpoint in {self.folder.checkpoints} is intact: begin with --overwrite, not --resume"
                )
            if path is None:
                self.display.say(f"no checkpoint in {self.folder.checkpoints}: starting at step 0")
            return [None if path is None else str(path)]

        chosen = self.trainer.ranks.gather(self.trainer.ranks.together(choose))[0]
        return None if chosen is None else Path(chosen)

    def _evaluate_before(self) -> None:
        if self.held_out:
            found = self._held_out()
            accuracy, greedy = found["held_out_accuracy"], found["held_out_greedy"]
            self.trainer.progress.accuracy_before, self.trainer.progress.greedy_before = accuracy, greedy
            self.display.say(f"before: held-out accuracy {accuracy:.3f} sampled, {greedy:.3f} greedy")
            self._write({"step": 0, **found})

    def steps(self) -> None:
        """Does the steps that are left. Raises Interrupted, after a save, if a signal asked for the end."""
        progress, last = self.trainer.progress, self.config.steps
        self.display.begin(progress.step)
        with signals_noted() as signals:
            while progress.step < last:
                for event in self.schedule.before_step(self.trainer):
                    self.display.say(f"step {progress.step + 1}: {event}")
                metrics, samples = self.trainer.step()
                if self.held_out and _due(progress.step, self.config.evaluation.every_steps, last):
                    metrics |= self._held_out()
                barren = self._barren(metrics, samples)
                self._warn(metrics, len(samples.kept) + len(samples.dropped), barren)
                self._write(metrics, samples.kept)
                self.display.show(metrics)
                self.checkpointer.commit_if_written()
                if barren is not None:
                    require_signal(barren, progress, self.trainer.config, self.recipe.given_as)
                stop = self.trainer.ranks.any(bool(signals))
                if stop or _due(progress.step, self.config.checkpoint.every_steps, last):
                    self._save()
                if stop and progress.step < last:
                    self._finish_checkpoint(compare=False)  # whoever sent the signal may not wait for it
                    raise Interrupted(f"saved step {progress.step}; go on with --resume")
            self._finish_checkpoint(compare=True)

    def _finish_checkpoint(self, compare: bool) -> None:
        with self._phase("checkpoint", self.config.deadline.checkpoint_s):
            self.checkpointer.finish(compare)
            self.checkpointer.end_comparison()

    def _barren(self, metrics: dict[str, Any], samples: StepSamples) -> BarrenStep | None:
        """Counts the step; why there was nothing to learn in it, None where there was, or may have been."""
        barren = is_barren(metrics, self.trainer.learner.learns_by_advantages_alone)
        count_barren(self.trainer.progress, barren)
        if not barren:
            return None
        sampled = [*samples.kept, *samples.dropped]
        return explain(sampled, self.recipe, self.trainer.config, metrics.get("last_verifier_error", ""))

    def _warn(self, metrics: dict[str, Any], num_responses: int, barren: BarrenStep | None) -> None:
        why = barren.warning() if barren is not None else ""
        if metrics["groups_kept"] == 0:
            self.display.say(
                f"warning, step {metrics['step']}: no group had anything to teach, so nothing was trained{why}"
            )
        elif math.isnan(metrics["reward"]):
            self.display.say(
                f"warning, step {metrics['step']}: no response has a reward, so nothing was trained: of "
                f"{num_responses} {metrics['rewards_not_finite']} are NaN or infinite and "
                f"{metrics['responses_without_reward']} None"
            )
        elif metrics["zero_advantage_frac"] == 1.0:
            self.display.say(
                f"warning, step {metrics['step']}: in every group all rewards are equal: nothing to learn{why}"
            )
        elif metrics["rewards_not_finite"]:
            self.display.say(
                f"warning, step {metrics['step']}: {metrics['rewards_not_finite']} of {num_responses} rewards are NaN "
                f"or infinite, and these responses teach nothing"
            )
        if (failures := metrics["verifier_failures"]) > MANY_FAILURES * num_responses:
            self.display.say(
                f"warning, step {metrics['step']}: the reward failed on {failures} of {num_responses} responses, the "
                f"last time so: {metrics['last_verifier_error']}"
            )
        if warning := mismatch_warning(metrics, self.config.objective.rollout_kl_alarm):
            self.display.say(f"warning, step {metrics['step']}: {warning}")

    def _held_out(self) -> dict[str, float]:
        with self._phase("evaluate", self.config.deadline.generate_s + self.config.deadline.judge_s):
            return self.trainer.held_out(self.held_out)

    def _save(self) -> None:
        progress = self.trainer.progress
        with self._phase("checkpoint", self.config.deadline.checkpoint_s):
            self.checkpointer.save(progress.step, self.trainer.learner, asdict(progress), self.trainer.rollouts.state())

    def _phase(self, name: str, deadline_s: float) -> contextlib.AbstractContextManager[None]:
        setting = "--deadline.generate_s + judge_s" if name == "evaluate" else ""
        return self.trainer.ranks.watchdog.phase(name, deadline_s, setting)

    def _write(self, metrics: dict[str, Any], samples: Sequence[Sample] = ()) -> None:
        if self.trainer.ranks.is_first:
            count = self.config.checkpoint.rollouts_per_step
            self.folder.rollouts.append(rollout_rows(samples, metrics["step"], count))
            self.folder.metrics.append([metrics])  # trackers look here first: then all of the step is there

    def end_trackers(self, ended_by: type[BaseException] | None, *_: object) -> None:
        """Closes the trackers however the run ends. Whoever presses Ctrl-C again does not wait for them."""
        if self.trackers is not None:
            self.trackers.close(wait=ended_by is not KeyboardInterrupt)

    def finish(self) -> None:
        """Writes summary and report and says where everything is."""
        if not self.trainer.ranks.is_first:
            return
        ranks, train_s = self.trainer.ranks, self.trainer.progress.train_s
        summary = summary_of(self.trainer.progress, self.folder.metrics, self.config.seed, ranks)
        if self.trackers is not None:
            summary["trackers"] = self.trackers.close()
        write_json(self.folder.summary, summary)
        report = write_report(self.folder.path)
        if self.held_out:
            self.display.say(
                f"held-out accuracy: sampled {summary['accuracy_before']:.3f} -> {summary['accuracy_after']:.3f}, "
                f"greedy {summary['greedy_before']:.3f} -> {summary['greedy_after']:.3f}, "
                f"in {train_s:.0f} s of training"
            )
        if "score_after" in summary and "score_before" in summary:
            self.display.say(f"held-out score: {summary['score_before']:.3f} -> {summary['score_after']:.3f}")
        for path in (self.folder.metrics.path, self.folder.summary, report, self.folder.checkpoints):
            self.display.say(f"  {path}")


def _due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)
