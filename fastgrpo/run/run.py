"""A run from its first check to its report."""

import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils.logging import disable_progress_bar

from fastgrpo.algorithm import Algorithm
from fastgrpo.algorithm.scoring import Scored
from fastgrpo.config import Config
from fastgrpo.data import PromptStream
from fastgrpo.json_lines import write_json
from fastgrpo.models.load import compute_dtype
from fastgrpo.policy.activations import fit
from fastgrpo.policy.learner import Learner
from fastgrpo.policy.mismatch import mismatch_warning
from fastgrpo.policy.model import load_policy, sequence_cost
from fastgrpo.policy.reference import Reference
from fastgrpo.policy.sharding import full_weights, shard
from fastgrpo.ranks import Ranks
from fastgrpo.recipe import Recipe
from fastgrpo.rewards import VerifierPool
from fastgrpo.rollout.engines import check_engine
from fastgrpo.rollout.prompts_in_order import PromptsInOrder
from fastgrpo.rollout.start import start_rollouts
from fastgrpo.run.checkpoint import Checkpointer, newest_intact
from fastgrpo.run.display import Display
from fastgrpo.run.folder import RunFolder
from fastgrpo.run.inputs import load_inputs
from fastgrpo.run.schedule import RunSchedule
from fastgrpo.trainer import Progress, Trainer
from fastgrpo.types import Prompt, Sampling

EXIT_INTERRUPTED = 75
"""Exit code of a run that a signal ended after it saved: go on with ``--resume``."""


class Interrupted(Exception):
    """A signal asked the run to end, and it saved its state."""


def train(recipe: Recipe, config: Config, ranks: Ranks, trainer_class: type[Trainer] = Trainer) -> None:
    """The whole run. Raises Refused for what the user can mend, before training begins and mostly before weights load.

    ``trainer_class`` may override a verb of the step, as the control of the learning bar does with the advantages.
    """
    folder = RunFolder(Path(config.run_dir))
    if not (ranks.is_first and sys.stdout.isatty()):
        disable_progress_bar()
    with Display(config.steps, quiet=not ranks.is_first) as display, contextlib.ExitStack() as ends:
        with ranks.watchdog.phase("start", config.deadline.start_s):
            run = start(recipe, config, folder, ranks, display, trainer_class, ends)
        run.resume_or_start()
        run.steps()
        with ranks.watchdog.phase("checkpoint", config.deadline.checkpoint_s):
            run.finish()
            ranks.barrier()


def start(
    recipe: Recipe,
    config: Config,
    folder: RunFolder,
    ranks: Ranks,
    display: Display,
    trainer_class: type[Trainer],
    ends: contextlib.ExitStack,
) -> "Run":
    """Everything before the first response; what must be ended is noted in ``ends``."""
    dtype, algorithm = compute_dtype(config.model, ranks.device), recipe.algorithm
    configs = algorithm.configs(config)
    ranks.together(lambda: check_engine(config, ranks.device, dtype))
    ranks.together(lambda: prepare(recipe, config, folder, ranks, display))
    inputs = ranks.together(lambda: load_inputs(configs, algorithm.problem_text, display, ranks.device, dtype))
    pool = ends.enter_context(ranks.together(lambda: start_verifiers(recipe, config)))
    streams = [PromptStream(encoded, config.seed, config.data.shuffle) for encoded in inputs.train]
    trainer = ranks.together(
        lambda: setup(config, algorithm, ranks, inputs.tokenizer, streams[0], pool, folder, trainer_class)
    )
    ends.callback(trainer.rollouts.close)
    recomputed = fit(trainer.learner.policy, ranks, config.model, config.optimizer, config.objective.loss_path)
    if recomputed and config.model.activation_checkpointing == "auto":
        display.say(f"{recomputed} layers recompute their activations: the free memory does not hold them all")
    ranks.together(lambda: begin_folder(recipe, config, folder, ranks))
    checkpointer = Checkpointer(folder.checkpoints, ranks, config.checkpoint.keep_last, dtype, inputs.tokenizer)
    schedule = RunSchedule(algorithm, config, streams)
    return Run(recipe, config, folder, display, trainer, checkpointer, inputs.held_out, schedule)


def prepare(recipe: Recipe, config: Config, folder: RunFolder, ranks: Ranks, display: Display) -> None:
    """Looks at the run folder and lets the recipe make what it starts from, on the first rank."""
    if not ranks.is_first:
        return
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"the run folder {folder.path} cannot be made: {error}") from error
    folder.check(config, recipe.algorithm.describe())
    if recipe.prepare is not None:
        recipe.prepare(config, folder.base, display.say)


def begin_folder(recipe: Recipe, config: Config, folder: RunFolder, ranks: Ranks) -> None:
    """From here on the folder is this run's."""
    if ranks.is_first:
        facts = {
            "name": config.name,
            "recipe": recipe.name,
            "model": config.model.path,
            "device": _device_name(ranks.device),
            "num_ranks": ranks.count,
            "published": recipe.published,
            "algorithm": recipe.algorithm.describe(),
            "reward": recipe.reward,
        }
        folder.begin(config, facts)


def start_verifiers(recipe: Recipe, config: Config) -> VerifierPool:
    """Raises ValueError if the verifier cannot be loaded or fails its self-test."""
    limits = config.reward
    try:
        return VerifierPool(
            recipe.reward, limits.workers, limits.timeout_s, limits.memory_limit_gib, self_test=recipe.self_test
        )
    except RuntimeError as error:
        raise ValueError(str(error)) from error


def setup(
    config: Config,
    algorithm: Algorithm,
    ranks: Ranks,
    tokenizer: Any,
    stream: PromptStream,
    pool: VerifierPool,
    folder: RunFolder,
    trainer_class: type[Trainer] = Trainer,
) -> Trainer:
    """Loads the weights twice: sharded to be trained, and whole to be sampled from; and where the run measures a
    divergence once more, frozen."""
    dtype = compute_dtype(config.model, ranks.device)
    policy = load_policy(config.model, config.rollout.temperature, ranks.device)
    sampling = Sampling(
        group_size=config.rollout.group_size,
        max_response_tokens=config.rollout.max_response_tokens,
        temperature=config.rollout.temperature,
        stop_token_ids=() if config.rollout.ignore_eos else stop_token_ids(config, policy.model.generation_config),
        seed=config.seed,
    )
    learner = Learner(
        shard(policy, ranks.mesh, dtype),
        ranks,
        sequence_cost(policy.model.config),
        config.objective,
        config.optimizer,
        need_entropy=config.rollout.engine != "builtin",  # which tells it with every response
        reference=load_reference(config, ranks) if algorithm.needs_reference(config) else None,
    )
    rollouts = start_rollouts(
        algorithm.widest(config),
        ranks,
        PromptsInOrder(stream),
        sampling,
        policy.model.named_parameters(),
        partial(full_weights, policy),
    )
    return trainer_class(
        config=config,
        ranks=ranks,
        tokenizer=tokenizer,
        rollouts=rollouts,
        pool=pool,
        learner=learner,
        run_dir=folder.path,
        algorithm=algorithm,
    )


def load_reference(config: Config, ranks: Ranks) -> Reference:
    """The model that the run begins with; a checkpoint may put a later one in its place."""
    policy = load_policy(config.model, config.rollout.temperature, ranks.device).requires_grad_(False)
    return Reference(shard(policy, ranks.mesh, compute_dtype(config.model, ranks.device)))


def stop_token_ids(config: Config, generation_config: Any) -> tuple[int, ...]:
    """The end tokens of the model's generation settings and the recipe's."""
    ids = generation_config.eos_token_id
    ends = tuple(ids) if isinstance(ids, list) else (ids,) if ids is not None else ()
    if not ends and not config.rollout.stop_token_ids:
        raise ValueError(f"{config.model.path} names no end token: give --rollout.stop_token_ids")
    return tuple(dict.fromkeys((*ends, *config.rollout.stop_token_ids)))


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

    def resume_or_start(self) -> None:
        path = self._checkpoint_to_resume() if self.config.resume else None
        if path is not None:
            with self._phase("start", self.config.deadline.start_s):
                progress, rollouts = self.checkpointer.load(path, self.trainer.learner)
                self.trainer.progress = Progress(**progress)
                self.schedule.go_on(self.trainer)
                self.trainer.rollouts.load_state(rollouts)
                self.trainer.sync(self.trainer.progress.step)
            self.display.say(f"continuing from {path}")
        if self.trainer.ranks.is_first:
            self.folder.metrics.keep_until(self.trainer.progress.step if path else -1)
            self.folder.rollouts.keep_until(self.trainer.progress.step if path else -1)
        if path is None:
            with self._phase("start", self.config.deadline.start_s):
                self.trainer.compare_weights()
            self._evaluate_before()

    def _checkpoint_to_resume(self) -> Path | None:
        """Chosen on the first rank: others must not see another state of the folder."""

        def choose() -> list[Path | None]:
            if not self.trainer.ranks.is_first:
                return []
            path, complaints = newest_intact(self.folder.checkpoints)
            for complaint in complaints:
                self.display.say(complaint)
            if path is None and complaints:
                raise ValueError(f"no checkpoint in {self.folder.checkpoints} is intact: --overwrite starts anew")
            if path is None:
                self.display.say(f"no checkpoint in {self.folder.checkpoints}: starting at step 0")
            return [path]

        return self.trainer.ranks.gather(self.trainer.ranks.together(choose))[0]

    def _evaluate_before(self) -> None:
        if self.held_out:
            accuracy, greedy = self._accuracy()
            self.trainer.progress.accuracy_before, self.trainer.progress.greedy_before = accuracy, greedy
            self.display.say(f"before: held-out accuracy {accuracy:.3f} sampled, {greedy:.3f} greedy")
            self._write({"step": 0, "held_out_accuracy": accuracy, "held_out_greedy": greedy})

    def steps(self) -> None:
        progress, last = self.trainer.progress, self.config.steps
        self.display.begin(progress.step)
        with _signals_noted() as signals:
            while progress.step < last:
                for event in self.schedule.before_step(self.trainer):
                    self.display.say(f"step {progress.step + 1}: {event}")
                metrics, scored = self.trainer.step()
                if self.held_out and _due(progress.step, self.config.evaluation.every_steps, last):
                    metrics["held_out_accuracy"], metrics["held_out_greedy"] = self._accuracy()
                self._warn(metrics)
                self._write(metrics, self._rollouts(scored) if self.trainer.ranks.is_first else [])
                self.display.show(metrics)
                self.checkpointer.publish_if_written()
                stop = self.trainer.ranks.any(bool(signals))
                if stop or _due(progress.step, self.config.checkpoint.every_steps, last):
                    self._save()
                if stop and progress.step < last:
                    self._finish_checkpoint()
                    raise Interrupted(f"saved step {progress.step}; go on with --resume")
            self._finish_checkpoint()

    def _finish_checkpoint(self) -> None:
        with self._phase("checkpoint", self.config.deadline.checkpoint_s):
            self.checkpointer.finish()

    def _warn(self, metrics: dict[str, Any]) -> None:
        if metrics["groups_kept"] == 0:
            self.display.say(f"warning, step {metrics['step']}: no group had anything to teach, so nothing was trained")
        elif metrics["zero_advantage_frac"] == 1.0:
            self.display.say(f"warning, step {metrics['step']}: in every group all rewards are equal: nothing to learn")
        if warning := mismatch_warning(metrics, self.config.objective.rollout_kl_alarm):
            self.display.say(f"warning, step {metrics['step']}: {warning}")

    def _accuracy(self) -> tuple[float, float]:
        with self._phase("evaluate", self.config.deadline.generate_s + self.config.deadline.judge_s):
            return self.trainer.accuracy(self.held_out)

    def _save(self) -> None:
        progress = self.trainer.progress
        with self._phase("checkpoint", self.config.deadline.checkpoint_s):
            self.checkpointer.save(progress.step, self.trainer.learner, asdict(progress), self.trainer.rollouts.state())

    def _phase(self, name: str, deadline_s: float) -> contextlib.AbstractContextManager[None]:
        setting = "--deadline.generate_s + judge_s" if name == "evaluate" else ""
        return self.trainer.ranks.watchdog.phase(name, deadline_s, setting)

    def _write(self, metrics: dict[str, Any], rollouts: list[dict[str, Any]] | None = None) -> None:
        if self.trainer.ranks.is_first:
            self.folder.metrics.append([metrics])
            self.folder.rollouts.append(rollouts or [])

    def _rollouts(self, scored: Scored) -> list[dict[str, Any]]:
        """An even choice from the responses that the first rank judged, for the report."""
        size = self.trainer.config.rollout.group_size  # of the phase
        rows = [
            (judged, k, group * size + k)
            for group, judged in enumerate(scored.judged)
            for k in range(len(judged.texts))  # none where another rank judged
        ]
        count = min(self.config.checkpoint.rollouts_per_step, len(rows))
        chosen = [rows[i] for i in np.linspace(0, len(rows) - 1, count).astype(int)]
        return [
            {
                "step": self.trainer.progress.step,
                "prompt": judged.group.prompt.text,
                "response": judged.texts[k],
                "answer": judged.group.prompt.answer,
                "reward": float(scored.rewards[n]),
                "advantage": float(scored.advantages[n]),
                "num_response_tokens": len(judged.group.responses[k]),
                "finish_reason": judged.group.responses[k].finish_reason,
            }
            for judged, k, n in chosen
        ]

    def finish(self) -> None:
        """Writes summary and report and says where everything is."""
        if not self.trainer.ranks.is_first:
            return
        progress = self.trainer.progress
        records = self.folder.metrics.read()
        evaluated = [r for r in records if r.get("held_out_accuracy") is not None]
        after: dict[str, Any] = evaluated[-1] if evaluated else {}
        summary = {
            "accuracy_before": progress.accuracy_before,
            "accuracy_after": after.get("held_out_accuracy"),
            "greedy_before": progress.greedy_before,
            "greedy_after": after.get("held_out_greedy"),
            "train_s": progress.train_s,
            "tokens_per_s": progress.total_tokens / progress.train_s if progress.train_s else None,
            "steps": progress.step,
            "seed": self.config.seed,
            "total_tokens": progress.total_tokens,
            "updates": progress.updates,
            "skipped_updates": progress.skipped_updates,
            "verifier_failures": progress.verifier_failures,
            "num_ranks": self.trainer.ranks.count,
            "device": _device_name(self.trainer.ranks.device),
        }
        write_json(self.folder.summary, summary)
        report = self._report()
        if self.held_out:
            self.display.say(
                f"held-out accuracy: sampled {summary['accuracy_before']:.3f} -> {summary['accuracy_after']:.3f}, "
                f"greedy {summary['greedy_before']:.3f} -> {summary['greedy_after']:.3f}, "
                f"in {progress.train_s:.0f} s of training"
            )
        for path in (self.folder.metrics.path, self.folder.summary, report, self.folder.checkpoints):
            if path is not None:
                self.display.say(f"  {path}")

    def _report(self) -> Path | None:
        """The page, or None where what draws it is missing, as on a machine that has only what training needs."""
        try:
            from fastgrpo.report import write_report
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("fastgrpo"):
                raise
            self.display.say(f"no report: {error.name} is not installed; where it is, `fastgrpo report` makes one")
            return None
        return write_report(self.folder.path)


def _due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)


@contextlib.contextmanager
def _signals_noted() -> Iterator[list[float]]:
    """SIGTERM and Ctrl-C are noted and acted on after the step; another Ctrl-C, later, ends the process at once."""
    noted: list[float] = []
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, _: Any) -> None:
        # Launchers answer a Ctrl-C with a SIGTERM of their own: only a person's second one means "now".
        if noted and number == signal.SIGINT and time.monotonic() - noted[0] > 1.0:
            raise KeyboardInterrupt
        noted.append(time.monotonic())

    for s in before:
        signal.signal(s, note)
    try:
        yield noted
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
