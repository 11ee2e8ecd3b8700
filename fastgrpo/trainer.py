"""GRPO: set up once, then the same step again and again."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastgrpo.algorithm import Algorithm
from fastgrpo.algorithm.judged_groups import JudgedGroups, all_groups
from fastgrpo.algorithm.judging import Judging
from fastgrpo.algorithm.metrics import recipe_metrics, reward_metrics
from fastgrpo.algorithm.scoring import RecipeError, rewards_of, with_advantages, with_rewards
from fastgrpo.algorithm.selection import Selection
from fastgrpo.config import Config
from fastgrpo.policy.learner import Learner, Update
from fastgrpo.policy.optimizer import learning_rate
from fastgrpo.policy.packing import split_updates
from fastgrpo.policy.token_sums import TokenSums
from fastgrpo.proof.weights import Difference, probe, prove_weights
from fastgrpo.ranks import Ranks
from fastgrpo.ranks.watchdog import Watchdog
from fastgrpo.rewards import RewardError, VerifierPool
from fastgrpo.rollout.engine_spec import engine_dtype
from fastgrpo.rollout.rollouts import Rollouts
from fastgrpo.types import Group, Prompt, Response, ResponseElsewhere, Sample, Sampling


class TrainingError(RuntimeError):
    """The run cannot go on; the message says why."""


@dataclass
class Progress:
    """What a run knows besides its weights; a checkpoint keeps it."""

    step: int = 0
    updates: int = 0  # of the optimizer
    total_tokens: int = 0  # response tokens sampled for training
    train_s: float = 0.0
    skipped_in_a_row: int = 0
    skipped_updates: int = 0
    verifier_failures: int = 0
    barren_steps: int = 0  # the run's first steps, up to one in which there was something to learn
    accuracy_before: float | None = None
    greedy_before: float | None = None


@dataclass(frozen=True)
class StepSamples:
    """The samples that a step trains on, and those that it left out, group by group. All ranks have the same, but for
    tokens and texts, which stay on the rank that judged them."""

    kept: list[Sample]
    dropped: list[Sample]
    counts: dict[str, float]  # what became of the prompts


def limit_of(phase: str, config: Config) -> tuple[str, float, str]:
    """The name of a step's phase in messages, its longest time, and the setting that gives it."""
    if phase == "sync" and config.rollout.samples_apart:
        return "sync", config.longest_sync_s, "(--deadline.start_s + sync_s) for each engine that may be lost,"
    names = {"rollout": "generate", "drain": "generate", "reward": "judge", "old_logprobs": "update"}
    name = names.get(phase, phase)
    return name, getattr(config.deadline, f"{name}_s"), f"--deadline.{name}_s"


@dataclass
class Clock:
    """Measures the phases of a step in seconds, and ends the run when one outlasts its deadline."""

    watchdog: Watchdog
    config: Config
    phases: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        with self.watchdog.phase(*limit_of(phase, self.config)):
            yield
        self.phases[f"{phase}_s"] = self.phases.get(f"{phase}_s", 0.0) + time.perf_counter() - start


@dataclass
class Trainer:
    """The parts of a run. ``step`` is the algorithm."""

    config: Config
    ranks: Ranks
    tokenizer: Any
    rollouts: Rollouts
    pool: VerifierPool
    learner: Learner
    run_dir: Path
    algorithm: Algorithm = field(default_factory=Algorithm)
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        self.longest_response = self.algorithm.widest(self.config).rollout.max_response_tokens
        self.judging = Judging(self.tokenizer, self.pool)
        self.rollouts.judging = self.judging

    def set_config(self, config: Config) -> None:
        """Goes on with the settings of the phase that begins with the next step."""
        rollout = config.rollout
        self.config = config
        self.learner.set_config(config.objective, config.optimizer, rollout.temperature, rollout.max_response_tokens)
        sampling = replace(
            self.rollouts.sampling,
            group_size=rollout.group_size,
            max_response_tokens=rollout.max_response_tokens,
            temperature=rollout.temperature,
        )
        self.rollouts.set_config(config, sampling)

    def reset_reference(self, *, clear_optimizer: bool) -> None:
        """Makes the policy as it is the reference."""
        assert self.learner.reference is not None
        self.learner.reference.reset(self.learner.policy)
        if clear_optimizer:
            self.learner.clear_optimizer()

    def step(self) -> tuple[dict[str, Any], StepSamples]:
        """Does one step of GRPO. Returns its metrics, the same on every rank, and what was sampled."""
        clock, sums = Clock(self.ranks.watchdog, self.config), TokenSums.zero(self.ranks.device)
        started = time.perf_counter()
        samples = self.sample(clock)
        self.rollouts.release_memory()
        with clock("old_logprobs"):
            updates = self.with_old_logprobs(self.updates(samples.kept))
        with clock("update"):
            norms = [self.update(u, sums) for u in updates]
        with clock("drain"):
            self.rollouts.drain()
        with clock("sync"):
            self.sync(self.progress.step + 1)
        metrics = self.finish_step(samples, sums, norms, clock, time.perf_counter() - started)
        return metrics, samples

    def sample(self, clock: "Clock") -> StepSamples:
        """The step's samples with rewards and advantages; groups without signal are kept, left out or replaced."""
        settings = self.config.rollout
        wanted, has_signal = self.config.data.prompts_per_step, self.algorithm.has_signal
        selection = Selection(settings.zero_signal_groups, wanted, settings.max_rounds, has_signal)
        self.rollouts.begin_step(self.progress.step)
        while selection.num_missing:
            with clock("rollout"):
                groups = self.rollouts.take(selection.num_missing)
            with clock("reward"):
                selection.add(self.judge(groups))
        kept, dropped = (self.with_rewards(groups) for groups in (selection.kept, selection.dropped))
        kept = with_advantages(kept, self.algorithm, self.config, self.progress.step)
        return StepSamples(kept, dropped, {**selection.metrics(), **self.rollouts.metrics()})

    def judge(self, groups: list[Group]) -> list[Group]:
        """This rank's groups, and those of all ranks, once the verdicts are there that were asked for while they were
        drawn. Tokens and texts stay on the rank that judged them."""
        mine = self._judge(groups, self.rollouts.sampling)
        everyone = self.ranks.gather([JudgedGroups.of(mine)], [JudgedGroups])
        return all_groups(everyone, mine, self.ranks.rank, self.rollouts.prompts.at)

    def _judge(self, groups: list[Group], sampling: Sampling) -> list[Group]:
        """This rank's groups with their verdicts. Raises TrainingError, on every rank, if the reward cannot go on."""
        reasons = []
        try:
            judged = self.judging.judged(groups, sampling, self.config.reward.correct)
        except RewardError as error:
            reasons = [str(error)]
        if reasons := self.ranks.gather(reasons):
            raise TrainingError(f"the reward cannot go on: {reasons[0]}")
        return judged

    def last_error(self, failures: Sequence[str], of: str) -> str:
        """The last line of what a reward's process said of a failure, the same on every rank; empty if there is none.
        Raises TrainingError if there are nothing but failures: nothing can be learned so."""
        if not any(failures):
            return ""
        mine = [self.pool.last_error.split("\n")[0]] if self.pool.last_error else []
        last = next(iter(self.ranks.gather(mine)), "unknown")
        if all(failures):
            raise TrainingError(f"the reward failed on all {len(failures)} responses of {of}: {last}")
        return last

    def measured(self, samples: list[Sample]) -> dict[str, float]:
        """What the recipe's metrics give. Raises RecipeError, on every rank, if one of them fails on one rank: a metric
        may do there what it does nowhere else."""
        if not self.algorithm.metrics:
            return {}
        reasons = []
        try:
            found = recipe_metrics(samples, self.algorithm, self.config, self.progress.step)
        except RecipeError as error:
            reasons = [str(error)]
        if reasons := self.ranks.gather(reasons):
            raise RecipeError(reasons[0])
        return found

    def with_rewards(self, groups: list[Group]) -> list[Sample]:
        """The samples of these groups with their rewards, in which no other group has a say."""
        samples = [sample for group in groups for sample in group]
        return with_rewards(samples, self.algorithm, self.config, self.progress.step)

    def updates(self, samples: list[Sample]) -> list[Update]:
        group_size, count = self.config.rollout.group_size, self.config.optimizer.updates_per_step
        return [self.learner.pack(update) for update in split_updates(samples, count, group_size)]

    def with_old_logprobs(self, updates: list[Update]) -> list[Update]:
        """The updates with the denominators of their ratios; the first has none, for they are the current logprobs."""
        updates = [replace(u, is_first=i == 0) for i, u in enumerate(updates)]
        if self.config.objective.old_logprobs == "rollout":
            return [self.learner.with_rollout_logprobs(u) for u in updates]
        if self.learner.chooses_tokens:
            return [self.learner.with_chosen_tokens(u, self.config.seed, self.progress.step) for u in updates]
        return [*updates[:1], *(self.learner.with_old_logprobs(u) for u in updates[1:])]

    def update(self, update: Update, sums: TokenSums) -> float:
        """Does one optimizer update and returns its gradient norm. One that is not finite is skipped."""
        self.learner.backward(update, sums)
        norm = self.learner.apply(learning_rate(self.config.optimizer, self.progress.step + 1))
        if np.isfinite(norm):
            self.progress.updates += 1
            self.progress.skipped_in_a_row = 0
        else:
            self._skip(update, norm)
        return norm

    def _skip(self, update: Update, norm: float) -> None:
        self.progress.skipped_updates += 1
        self.progress.skipped_in_a_row += 1
        folder = self.run_dir / "skipped"
        folder.mkdir(exist_ok=True)
        name = f"step_{self.progress.step + 1:06d}_skip_{self.progress.skipped_updates}_rank_{self.ranks.rank}.pt"
        torch.save([asdict(b) for b in update.batches], folder / name)
        if self.progress.skipped_in_a_row >= self.config.optimizer.max_skipped_updates:
            raise TrainingError(
                f"{self.progress.skipped_in_a_row} updates in a row had a gradient norm of {norm}, the last in step "
                f"{self.progress.step + 1}; their batches are in {folder}. The usual causes are a learning rate that "
                f"is too high (now --optimizer.learning_rate {self.config.optimizer.learning_rate}) and broken weights"
            )

    def sync(self, policy_version: int) -> None:
        """Gives the engines the current weights, and probes them whenever all weights were compared."""
        self.rollouts.sync(policy_version)
        if self.rollouts.just_compared:
            self.probe()

    def compare_weights(self) -> None:
        """Raises WeightMismatch if an engine does not hold the trainer's weights."""
        self.rollouts.compare()

    def probe(self) -> None:
        """Raises WeightMismatch if an engine means something else by its weights than the trainer."""
        probe(self._probe_prompts(), self.rollouts, self.learner, engine_dtype(self.config, self.ranks.device))

    def prove(self, dtype: torch.dtype) -> tuple[Difference, Difference]:
        """How far the trainer, which computes in ``dtype``, is from the model's own forward pass, and the engine from
        the trainer.

        Raises ValueError or WeightMismatch where one computes something else.
        """
        dtypes = dtype, engine_dtype(self.config, self.ranks.device)
        return prove_weights(self._probe_prompts(), self.rollouts, self.learner, dtypes)

    def _probe_prompts(self) -> list[Prompt]:
        return [self.rollouts.prompts.at(position) for position in (0, 1)]

    def finish_step(
        self, samples: StepSamples, sums: TokenSums, norms: list[float], clock: "Clock", step_s: float
    ) -> dict[str, Any]:
        """Counts the step and puts its figures together, summed over ranks."""
        kept, sampled = samples.kept, [*samples.kept, *samples.dropped]
        responses = [s.response for s in sampled]
        num_tokens = sum(r.num_sampled_tokens for r in responses)
        tokens = TokenSums.metrics(
            self.ranks.sum(sums.values), sum(s.response.num_sampled_tokens for s in kept if s.teaches)
        )
        by_version = np.array([pair for r in responses for pair in r.sampled_by]).reshape(-1, 2)
        staleness, counts = self.progress.step - by_version[:, 0], by_version[:, 1]
        rewards = rewards_of([s for s in sampled if s.teaches])
        last_error = self.last_error([s.failure for s in sampled], "a step")
        progress = self.progress
        of_recipe = self.measured(sampled)
        progress.step += 1
        progress.total_tokens += num_tokens
        progress.train_s += step_s
        failures = sum(bool(s.failure) for s in sampled)
        progress.verifier_failures += failures
        return {
            "step": progress.step,
            "reward": float(rewards.mean()) if len(rewards) else math.nan,
            "reward_std": float(rewards.std()) if len(rewards) else math.nan,
            "accuracy": float(np.mean([s.correct for s in sampled])),  # before any shaping
            "response_length": num_tokens / len(responses),
            "truncated_frac": float(np.mean([r.finish_reason == "length" for r in responses])),
            "zero_advantage_frac": self._share_without_advantage(kept),
            "entropy": _mean_entropy(responses, otherwise=tokens.pop("entropy")),
            **tokens,
            "grad_norm": float(np.mean([n for n in norms if np.isfinite(n)] or [math.nan])),
            "learning_rate": learning_rate(self.config.optimizer, progress.step),
            "updates": progress.updates,
            "staleness_mean": float((staleness * counts).sum() / max(counts.sum(), 1)),
            "staleness_max": int(staleness.max(initial=0)),
            "skipped_updates": sum(not np.isfinite(n) for n in norms),
            "verifier_failures": failures,
            **({"last_verifier_error": last_error} if last_error else {}),
            **reward_metrics(sampled),
            "engine_busy_s": clock.phases["rollout_s"],
            **samples.counts,  # engines with ranks of their own know better
            "total_tokens": progress.total_tokens,
            "tokens_per_s": num_tokens / step_s,
            "step_s": step_s,
            **clock.phases,
            **of_recipe,
        }

    def _share_without_advantage(self, samples: list[Sample]) -> float:
        groups = np.array([s.advantage for s in samples]).reshape(-1, self.config.rollout.group_size)
        return float((groups == 0).all(axis=1).mean()) if len(groups) else math.nan

    def held_out(self, prompts: list[Prompt]) -> dict[str, float]:
        """Sampled (avg@k) and greedy accuracy on held-out problems, from draws that training never uses; where rewards
        are numbers also their means."""
        settings, training = self.config.evaluation, self.rollouts.sampling
        sampled = replace(
            training,
            group_size=settings.samples_per_prompt,
            max_response_tokens=self.longest_response,  # in every phase alike
            temperature=settings.temperature,
            seed=training.seed + 2**32,
        )
        accuracy, score = self._accuracy(prompts, sampled)
        greedy, greedy_score = self._accuracy(prompts, replace(sampled, group_size=1, temperature=0.0))
        scores = {"held_out_score": score, "held_out_greedy_score": greedy_score}
        return {
            "held_out_accuracy": accuracy,
            "held_out_greedy": greedy,
            **{name: mean for name, mean in scores.items() if mean is not None},
        }

    def _accuracy(self, prompts: list[Prompt], sampling: Sampling) -> tuple[float, float | None]:
        """The share of right responses, and the mean of the rewards that are numbers, if any are."""
        judged = self._judge(self.rollouts.generate(prompts, sampling, self.judging), sampling)
        mine = [(s.correct, s.failure, s.score if s.graded and s.teaches else None) for group in judged for s in group]
        correct, failures, scores = zip(*self.ranks.gather(mine), strict=True)
        self.last_error(failures, "an evaluation")
        graded = [score for score in scores if score is not None]
        return float(np.mean(correct)), float(np.mean(graded)) if graded else None


def _mean_entropy(responses: Sequence[Response | ResponseElsewhere], otherwise: float) -> float:
    """The mean over all sampled tokens as the sampler knew it; ``otherwise`` where it did not."""
    num_tokens = sum(r.num_sampled_tokens for r in responses)
    if num_tokens == 0 or any(r.mean_entropy is None for r in responses):
        return otherwise
    return sum((r.mean_entropy or 0.0) * r.num_sampled_tokens for r in responses) / num_tokens
