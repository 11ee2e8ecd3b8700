"""The trainer's whole step with a slow reward, beside the same step with one that takes no time.

One process has a trainer, a built-in engine with random weights, and two pools. Its steps draw the same responses, for
the learning rate is too small to change a weight. One token of the vocabulary ends a response, so each token does with
a probability of about one in its size, and lengths are distributed geometrically.
"""

import statistics
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.harness import interleaved, spread_frac

CPU = torch.device("cpu")
AT_ONCE, SLOW, SLOW_AFTERWARDS = "0 ms", "50 ms", "50 ms, asked after the last response"
REWARDS = {AT_ONCE: "at_once", SLOW: "after_50_ms", SLOW_AFTERWARDS: "after_50_ms"}
BAR = 1.1
PROMPT_TOKENS = 16


@dataclass(frozen=True)
class Size:
    num_prompts: int
    group_size: int
    vocabulary: int  # and so about the mean length
    max_response_tokens: int
    workers: int
    rounds: int


FULL, QUICK = Size(8, 8, 64, 320, 4, 9), Size(2, 2, 16, 32, 1, 1)


@dataclass(frozen=True)
class Steps:
    """The steps of each kind, one a round, and the lengths of the responses that all of them draw."""

    steps: Mapping[str, list[dict[str, float]]]  # step_s, rollout_s, reward_s
    lengths: list[int]

    def median(self, kind: str, phase: str) -> float:
        return statistics.median(step[phase] for step in self.steps[kind])

    def ratios(self, kind: str) -> list[float]:
        """Of the step's time to that of the step with the quick reward in the same round."""
        pairs = zip(self.steps[kind], self.steps[AT_ONCE], strict=True)
        return [step["step_s"] / quick["step_s"] for step, quick in pairs]

    @property
    def decoding_kept(self) -> list[float]:
        """Of the rate of decoding without judging beside it, in each round."""
        pairs = zip(self.steps[SLOW_AFTERWARDS], self.steps[SLOW], strict=True)
        return [alone["rollout_s"] / beside["rollout_s"] for alone, beside in pairs]

    def facts(self) -> dict[str, Any]:
        return {
            "steps": dict(self.steps),
            "ratios": self.ratios(SLOW),
            "ratios_afterwards": self.ratios(SLOW_AFTERWARDS),
            "decoding_kept": self.decoding_kept,
            "lengths": self.lengths,
        }

    @property
    def described_lengths(self) -> str:
        shares = {"median": 0.5, "p90": 0.9, "longest": 1.0}
        return ", ".join(f"{name} {np.quantile(self.lengths, share):.0f}" for name, share in shares.items())


def measure(size: Size) -> Steps:
    """The steps of each kind in turns."""
    from bench.synthetic import random_learner
    from fastgrpo.algorithm.judging import Judging
    from fastgrpo.config import ModelConfig, OptimizerConfig, ParallelConfig
    from fastgrpo.ranks import Ranks
    from fastgrpo.rewards import VerifierPool

    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in REWARDS}
    with ExitStack() as ends:
        ranks = Ranks.connect(CPU, ParallelConfig())
        ends.callback(ranks.disconnect)
        pools = {
            name: ends.enter_context(VerifierPool(f"bench.slow_reward:{name}", size.workers, 10.0, 2.0, self_test=[]))
            for name in sorted(set(REWARDS.values()))
        }
        shape = _shape(size)
        optimizer = OptimizerConfig(learning_rate=1e-12, updates_per_step=1, tokens_per_microbatch=8192)
        learner = random_learner(shape, ranks, ModelConfig(), optimizer)
        trainer = _trainer(size, shape, ranks, learner, pools["at_once"], ends)
        trainer.rollouts.sync(0)
        lengths: list[list[int]] = []

        def step(kind: str) -> None:
            trainer.pool = pools[REWARDS[kind]]
            trainer.judging = Judging(trainer.tokenizer, trainer.pool)
            trainer.rollouts.judging = None if kind == SLOW_AFTERWARDS else trainer.judging
            trainer.rollouts.prompts.next_position = 0
            metrics, samples = trainer.step()
            found[kind].append({phase: metrics[phase] for phase in ("step_s", "rollout_s", "reward_s")})
            lengths.append([len(s.response) for s in samples.kept])

        interleaved({kind: partial(step, kind) for kind in REWARDS}, CPU, rounds=size.rounds, warmup_s=0.0)
    assert all(each == lengths[0] for each in lengths), "the steps did not draw the same responses"
    return Steps({kind: steps[1:] for kind, steps in found.items()}, lengths[0])  # without the warm-up


def _shape(size: Size) -> Any:
    from bench.shapes import Shape

    return Shape("judged steps", "qwen2", 2, 128, 384, 2, 2, 64, size.vocabulary)


def _trainer(size: Size, shape: Any, ranks: Any, learner: Any, pool: Any, ends: ExitStack) -> Any:
    from bench.synthetic import SyntheticPrompts, random_engine
    from fastgrpo.config import Config
    from fastgrpo.models.load import compute_dtype
    from fastgrpo.policy.sharding import full_weights
    from fastgrpo.rollout.local_rollouts import LocalRollouts
    from fastgrpo.rollout.prompts_in_order import PromptsInOrder
    from fastgrpo.trainer import Trainer
    from fastgrpo.types import Sampling

    config = Config()
    config = replace(
        config,
        data=replace(config.data, prompts_per_step=size.num_prompts),
        rollout=replace(config.rollout, group_size=size.group_size, max_response_tokens=size.max_response_tokens),
        optimizer=learner.config,
    )
    return Trainer(
        config=config,
        ranks=ranks,
        tokenizer=Numbers(),
        rollouts=LocalRollouts(
            random_engine(shape, ranks, config.responses_per_step),
            ranks,
            PromptsInOrder(SyntheticPrompts(shape, PROMPT_TOKENS)),  # type: ignore[arg-type]
            Sampling(size.group_size, size.max_response_tokens, stop_token_ids=(0,)),
            partial(full_weights, learner.policy),
            compute_dtype(config.model, ranks.device),
        ),
        pool=pool,
        learner=learner,
        run_dir=Path(ends.enter_context(tempfile.TemporaryDirectory())),
    )


class Numbers:
    """A tokenizer whose text is the ids."""

    def batch_decode(self, ids: list[list[int]], *, skip_special_tokens: bool) -> list[str]:
        return [" ".join(map(str, each)) for each in ids]


def rows_of(found: Steps) -> list[list[Any]]:
    return [
        [
            kind,
            *(found.median(kind, phase) for phase in ("step_s", "rollout_s", "reward_s")),
            statistics.median(found.ratios(kind)),
            f"{100 * spread_frac(found.ratios(kind)):.0f} %",
        ]
        for kind in REWARDS
    ]


def headline_of(found: Steps) -> list[list[str]]:
    return [
        ["step with a 50 ms reward / with a 0 ms reward", _with_range(found.ratios(SLOW)), f"<= {BAR}"],
        ["the same, asked after the last response", _with_range(found.ratios(SLOW_AFTERWARDS)), ""],
        ["rate of decoding beside judging / without", _with_range(found.decoding_kept), "1"],
    ]


def _with_range(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
