"""GRPO: set up once, then the same step again and again."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastgrpo.advantages import group_normalised
from fastgrpo.config import Config
from fastgrpo.data import PromptStream
from fastgrpo.packing import split_updates
from fastgrpo.policy.learner import Learner, TokenSums, Update
from fastgrpo.policy.optimizer import learning_rate
from fastgrpo.policy.sharding import full_weights
from fastgrpo.ranks import Ranks
from fastgrpo.rewards import Verdict, VerifierPool
from fastgrpo.rollout.engine import RolloutEngine
from fastgrpo.types import Group, Prompt, Response, Sampling, Sequence


class TrainingError(RuntimeError):
    """The run cannot go on; the message says why."""


@dataclass
class Progress:
    """What a run knows besides its weights; a checkpoint keeps it."""

    step: int = 0
    policy_version: int = 0  # optimizer updates
    total_tokens: int = 0  # response tokens sampled for training
    train_s: float = 0.0
    skipped_in_a_row: int = 0
    skipped_updates: int = 0
    verifier_failures: int = 0
    accuracy_before: float | None = None
    greedy_before: float | None = None


@dataclass(frozen=True)
class Scored:
    """All responses of a step, as every rank sees them."""

    groups: list[Group]
    texts: list[str]  # [N] of this rank's own share alone: text is only looked at, never fed back
    rewards: np.ndarray  # [N] float32
    advantages: np.ndarray  # [N] float32
    verifier_failures: int


@dataclass
class Clock:
    """Seconds of each phase of a step."""

    phases: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.phases[f"{phase}_s"] = self.phases.get(f"{phase}_s", 0.0) + time.perf_counter() - start


@dataclass
class Trainer:
    """The parts of a run. ``step`` is the algorithm."""

    config: Config
    ranks: Ranks
    stream: PromptStream
    tokenizer: Any
    engine: RolloutEngine
    pool: VerifierPool
    learner: Learner
    sampling: Sampling
    run_dir: Path
    progress: Progress = field(default_factory=Progress)

    def step(self) -> tuple[dict[str, Any], Scored]:
        """One step of GRPO. Returns its metrics, the same on every rank, and what was sampled."""
        clock, sums = Clock(), TokenSums.zero()
        started = time.perf_counter()
        with clock("rollout"):
            groups = self.rollout(self.next_prompts())
        with clock("reward"):
            scored = self.score(groups)
        with clock("old_logprobs"):
            updates = self.with_old_logprobs(self.updates(scored))
        with clock("update"):
            norms = [self.update(u, sums) for u in updates]
        with clock("sync"):
            self.engine.load_weights(full_weights(self.learner.policy))
        metrics = self.finish_step(scored, sums, norms, clock, time.perf_counter() - started)
        return metrics, scored

    def next_prompts(self) -> list[Prompt]:
        """The order is a function of seed and step, so a resumed run reads on where it stopped."""
        count = self.config.data.prompts_per_step
        return self.stream.prompts_at(self.progress.step * count, count)

    def rollout(self, prompts: list[Prompt]) -> list[Group]:
        """This rank's responses to its share of the prompts."""
        return self.engine.generate(self.ranks.share_of(prompts), self.sampling, self.progress.policy_version)

    def score(self, groups: list[Group]) -> Scored:
        """Judges this rank's responses and brings together those of all."""
        texts, verdicts = judge(groups, self.tokenizer, self.pool)
        rewards = [self.config.reward.correct if v.correct else self.config.reward.wrong for v in verdicts]
        all_rewards = np.array(self.ranks.gather(rewards), dtype=np.float32)
        return Scored(
            groups=self.ranks.gather(groups),
            texts=texts,
            rewards=all_rewards,
            advantages=self.advantages(all_rewards),
            verifier_failures=len(self.ranks.gather([v for v in verdicts if v.failure])),
        )

    def advantages(self, rewards: np.ndarray) -> np.ndarray:  # [N] -> [N]
        return group_normalised(rewards, self.config.rollout.group_size)

    def updates(self, scored: Scored) -> list[Update]:
        rows = ((g.prompt.prompt_ids, r) for g in scored.groups for r in g.responses)
        sequences = [Sequence(p, r, float(a)) for (p, r), a in zip(rows, scored.advantages, strict=True)]
        return [self.learner.pack(u) for u in split_updates(sequences, self.config.optimizer.updates_per_step)]

    def with_old_logprobs(self, updates: list[Update]) -> list[Update]:
        """The denominators of the ratios. For the first update they are the current logprobs: nothing to compute."""
        if self.config.objective.old_logprobs == "rollout":
            first, *others = (self.learner.with_rollout_logprobs(u) for u in updates)
            return [first, *(replace(u, is_first=False) for u in others)]
        return [updates[0], *(self.learner.with_old_logprobs(u) for u in updates[1:])]

    def update(self, update: Update, sums: TokenSums) -> float:
        """One optimizer update. One that is not finite is skipped, and its batch is kept for inspection."""
        self.learner.backward(update, sums)
        norm = self.learner.apply(learning_rate(self.config.optimizer, self.progress.step + 1))
        if np.isfinite(norm):
            self.progress.policy_version += 1
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

    def finish_step(
        self, scored: Scored, sums: TokenSums, norms: list[float], clock: Clock, step_s: float
    ) -> dict[str, Any]:
        """Counts the step and puts its figures together, summed over ranks."""
        responses = [r for g in scored.groups for r in g.responses]
        num_tokens = sum(len(r) for r in responses)
        totals = dict(zip(TokenSums.NAMES, self.ranks.sum(sums.values).tolist(), strict=True))
        # Responses without advantage may have been left out of both.
        num_trained, num_compared = totals["num_tokens"] or math.nan, totals["num_compared"] or math.nan
        group_size = self.config.rollout.group_size
        progress = self.progress
        progress.step += 1
        progress.total_tokens += num_tokens
        progress.train_s += step_s
        progress.verifier_failures += scored.verifier_failures
        return {
            "step": progress.step,
            "reward": float(scored.rewards.mean()),
            "reward_std": float(scored.rewards.std()),
            "response_length": num_tokens / len(responses),
            "truncated_frac": float(np.mean([r.finish_reason == "length" for r in responses])),
            "zero_advantage_frac": float((scored.advantages.reshape(-1, group_size) == 0).all(axis=1).mean()),
            "entropy": _mean_entropy(responses, otherwise=totals["entropy"] / num_trained),
            "rollout_kl": totals["rollout_kl"] / num_compared,
            "logprob_diff_above_001_frac": totals["logprob_diff_above_001"] / num_compared,
            "clip_frac": totals["clipped"] / num_tokens,
            "grad_norm": float(np.mean([n for n in norms if np.isfinite(n)] or [math.nan])),
            "learning_rate": learning_rate(self.config.optimizer, progress.step),
            "policy_version": progress.policy_version,
            "skipped_updates": sum(not np.isfinite(n) for n in norms),
            "verifier_failures": scored.verifier_failures,
            "total_tokens": progress.total_tokens,
            "tokens_per_s": num_tokens / step_s,
            "step_s": step_s,
            **clock.phases,
        }

    def accuracy(self, prompts: list[Prompt]) -> tuple[float, float]:
        """Sampled (avg@k) and greedy accuracy on held-out problems. Draws that training never uses."""
        settings = self.config.evaluation
        sampled = replace(
            self.sampling,
            group_size=settings.samples_per_prompt,
            temperature=settings.temperature,
            seed=self.sampling.seed + 2**32,
        )
        greedy = replace(sampled, group_size=1, temperature=0.0)
        return self._accuracy(prompts, sampled), self._accuracy(prompts, greedy)

    def _accuracy(self, prompts: list[Prompt], sampling: Sampling) -> float:
        groups = self.engine.generate(self.ranks.share_of(prompts), sampling, self.progress.policy_version)
        _, verdicts = judge(groups, self.tokenizer, self.pool)
        return float(np.mean(self.ranks.gather([v.correct for v in verdicts])))


def _mean_entropy(responses: list[Response], otherwise: float) -> float:
    """Over all response tokens as the sampler knew it, or `otherwise`: over those that were trained on."""
    if any(r.mean_entropy is None for r in responses):
        return otherwise
    return sum((r.mean_entropy or 0.0) * len(r) for r in responses) / sum(map(len, responses))


def judge(groups: list[Group], tokenizer: Any, pool: VerifierPool) -> tuple[list[str], list[Verdict]]:
    """Texts and verdicts of all responses, in order."""
    ids = [r.response_ids.tolist() for g in groups for r in g.responses]
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True) if ids else []  # a rank may have no prompt
    answers = [g.prompt.answer for g in groups for _ in g.responses]
    return texts, pool.score(list(zip(texts, answers, strict=True)))
