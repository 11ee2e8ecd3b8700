"""Random weights, prompts and responses for the project's own parts: the code that trains is what is measured."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from bench.shapes import Shape
from fastgrpo.config import Config, ModelConfig, ObjectiveConfig, OptimizerConfig
from fastgrpo.models.attention import choose_attention
from fastgrpo.models.load import apply_liger, compute_dtype, master_dtype
from fastgrpo.policy.learner import Learner
from fastgrpo.policy.policy import Policy, as_policy, sequence_cost
from fastgrpo.policy.sharding import shard
from fastgrpo.ranks import Ranks
from fastgrpo.rollout.builtin.engine import BuiltinEngine
from fastgrpo.rollout.builtin.kv_cache import ATTENTION
from fastgrpo.trainer import Trainer
from fastgrpo.types import Group, Prompt, Response, Sample

PROMPT_TOKENS = 128


def response_mix(num_tokens: int, seed: int = 1) -> list[int]:
    """Sequence lengths that sum to ``num_tokens``: lognormal, median 3/16 and sigma 0.8, between 1/16 and all of it.

    For 16,384 tokens that is 1k to 16k with a median of 3k, the spread of a reasoning model's responses.
    """
    rng = np.random.default_rng(seed)
    shares: list[float] = []
    while sum(shares) < 1:
        shares.append(float(np.clip(rng.lognormal(np.log(3 / 16), 0.8), 1 / 16, 1.0)))
    shares[-1] -= sum(shares) - 1
    if len(shares) > 1 and shares[-1] < 1 / 16:
        shares[-2] += shares.pop()
    lengths = [int(s * num_tokens) for s in shares]
    lengths[0] += num_tokens - sum(lengths)
    return lengths


def random_sequences(shape: Shape, lengths: Seq[int], prompt_tokens: int, seed: int = 1) -> list[Sample]:
    """Samples of which the model reads exactly these numbers of tokens, with advantages of +1 and -1 in turn."""
    rng = np.random.default_rng(seed)
    sequences = []
    for i, length in enumerate(lengths):
        ids = rng.integers(shape.vocabulary, size=length + 1).astype(np.int32)
        response = ids[prompt_tokens:]
        logprobs = np.full(len(response), -np.log(shape.vocabulary), dtype=np.float32)
        sequences.append(
            Sample(
                Prompt.of_ids(ids[:prompt_tokens]),
                Response(response, logprobs, "stop", 0),
                advantage=1.0 - 2.0 * (i % 2),
            )
        )
    return sequences


def random_model(shape: Shape, device: torch.device, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    """Random weights, made on the device; equal for equal shapes and dtypes."""
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(
            shape.transformers_config(), dtype=dtype, attn_implementation=attention
        )
    return model.to(device).eval()


def random_learner(
    shape: Shape,
    ranks: Ranks,
    model_config: ModelConfig,
    optimizer: OptimizerConfig,
    *,
    policy_class: type[Policy] = Policy,
    objective: ObjectiveConfig | None = None,
    unfilled: bool = False,
) -> Learner:
    """The learner that ``fastgrpo.run.run`` builds, with random weights: sharded, float32 masters, compute dtype.

    ``unfilled`` leaves the weights uninitialised, for models that are too large to be filled on one device.
    """
    device = ranks.device
    attention = choose_attention(model_config.attention, device, compute_dtype(model_config, device))
    made_on = torch.device("meta") if unfilled else device
    model = random_model(shape, made_on, master_dtype(model_config, device), attention)
    if model_config.liger and device.type == "cuda":
        apply_liger(model)
    policy = as_policy(model, model_config, 1.0, policy_class)
    cost = sequence_cost(model)
    sharded = shard(policy, ranks.mesh, compute_dtype(model_config, device))
    return Learner(sharded, ranks, cost, objective or ObjectiveConfig(), optimizer)


def random_engine(shape: Shape, ranks: Ranks, max_sequences: int) -> BuiltinEngine:
    dtype = compute_dtype(ModelConfig(), ranks.device)
    return BuiltinEngine(random_model(shape, ranks.device, dtype, ATTENTION), max_sequences)


def random_prompts(shape: Shape, count: int, num_tokens: int, seed: int = 1) -> list[Prompt]:
    rng = np.random.default_rng(seed)
    ids = rng.integers(shape.vocabulary, size=(count, num_tokens)).astype(np.int32)
    return [Prompt.of_ids(ids[i], i) for i in range(count)]


@dataclass(frozen=True)
class SyntheticPrompts:
    """An endless order of random prompts."""

    shape: Shape
    num_tokens: int

    def prompts_at(self, start: int, count: int) -> list[Prompt]:
        prompts = random_prompts(self.shape, count, self.num_tokens, seed=start)
        return [replace(p, position=start + i) for i, p in enumerate(prompts)]


class SyntheticTrainer(Trainer):
    """The trainer with random verdicts: nothing is decoded or judged."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rollouts.judging = None

    def judge(self, groups: list[Group]) -> list[Group]:
        coin = np.random.default_rng(self.progress.step)
        everything = self.ranks.gather(groups, [Sample, Prompt, Response])
        tossed = (coin.integers(2, size=len(group)).astype(bool) for group in everything)
        return [
            [replace(s, correct=c) for s, c in zip(g, t, strict=True)] for g, t in zip(everything, tossed, strict=True)
        ]


def tokens_read(config: Config, prompt_tokens: int) -> int:
    """Number of tokens that the updates of a step read if every response has its full length."""
    return config.responses_per_step * (prompt_tokens + config.rollout.max_response_tokens - 1)
