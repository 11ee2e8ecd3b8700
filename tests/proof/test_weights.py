"""The proof on the weights that are there: trainer against the model itself, engine against trainer."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fastgrpo.config import ModelConfig, ObjectiveConfig, OptimizerConfig
from fastgrpo.policy.learner import Learner
from fastgrpo.policy.packing import SequenceCost
from fastgrpo.policy.policy import Policy, as_policy
from fastgrpo.policy.sharding import full_weights, shard
from fastgrpo.proof import weights
from fastgrpo.proof.weights import PROMPT_TOKENS, probe, prove_weights
from fastgrpo.ranks import Ranks
from fastgrpo.rollout.builtin.engine import BuiltinEngine
from fastgrpo.rollout.builtin.kv_cache import ATTENTION
from fastgrpo.rollout.compare_weights import WeightMismatch
from fastgrpo.rollout.local_rollouts import LocalRollouts
from fastgrpo.types import Sampling
from tests.launched import run_ranks
from tests.tiny import prompts, tiny_model

FLOATS = (torch.float32, torch.float32)
SAMPLING = Sampling(group_size=8, max_response_tokens=64, temperature=0.8)


def parts(ranks: Ranks, name: str = "mistral", attention: str = "fastgrpo_padded") -> tuple[LocalRollouts, Learner]:
    policy = as_policy(tiny_model(name, attention), ModelConfig(), SAMPLING.temperature)
    sharded = shard(policy, ranks.mesh, torch.float32)
    learner = Learner(sharded, ranks, SequenceCost(100.0, 1.0), ObjectiveConfig(), OptimizerConfig())
    engine = BuiltinEngine(tiny_model(name, ATTENTION), 64)
    return LocalRollouts(engine, ranks, None, SAMPLING, lambda: full_weights(policy), torch.float32), learner


@pytest.mark.parametrize(("name", "attention"), [("mistral", "fastgrpo_padded"), ("qwen2", "sdpa")])
def test_trainer_engine_and_model_agree_and_the_models_attention_is_put_back(ranks, name, attention):
    rollouts, learner = parts(ranks, name, attention)
    own, sampled = prove_weights(prompts(2), rollouts, learner, FLOATS)
    assert own.num_tokens == 3 * 16
    assert 0 < own.largest < 1e-4 and 0 < sampled.largest < 1e-4
    assert learner.policy.model.config._attn_implementation == attention


def test_a_trainer_that_is_off_in_one_token_alone_is_refused(ranks, monkeypatch):
    rollouts, learner = parts(ranks)
    real = Policy._packed

    def off(self, batch):
        hidden = real(self, batch)
        return torch.cat([hidden[:-1], hidden[-1:] * 1.3])  # of the last response's last token

    monkeypatch.setattr(Policy, "_packed", off)
    with pytest.raises(ValueError, match=r"the trainer would compute this MistralForCausalLM wrongly"):
        prove_weights(prompts(2), rollouts, learner, FLOATS)


def test_an_engine_of_other_weights_is_refused(ranks):
    rollouts, learner = parts(ranks)
    rollouts.engine.model.model.norm.weight.data.mul_(1.05)
    with pytest.raises(WeightMismatch, match="mean different things by them"):
        prove_weights(prompts(2), rollouts, learner, FLOATS)
    with pytest.raises(WeightMismatch, match="mean different things by them"):
        probe(prompts(2), rollouts, learner, torch.float32)


def test_a_weight_that_is_not_finite_is_named(ranks):
    rollouts, learner = parts(ranks)
    with torch.no_grad():
        learner.policy.model.model.layers[1].mlp.up_proj.weight.to_local()[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"the weight model\.layers\.1\.mlp\.up_proj\.weight holds a NaN"):
        prove_weights(prompts(2), rollouts, learner, FLOATS)
    with pytest.raises(WeightMismatch, match=r"up_proj\.weight holds a NaN or an infinity: training has diverged"):
        probe(prompts(2), rollouts, learner, torch.float32)


def test_a_model_whose_own_pass_fails_is_refused_in_words(ranks, monkeypatch):
    rollouts, learner = parts(ranks)
    monkeypatch.setattr(type(learner.policy.model), "forward", lambda *_, **__: 1 / 0)
    with pytest.raises(ValueError, match="own forward pass of text alone fails"):
        prove_weights(prompts(2), rollouts, learner, FLOATS)


def test_of_a_long_prompt_the_beginning_is_tried(ranks):
    rollouts, learner = parts(ranks)
    long, short = prompts(2)
    long = replace(long, prompt_ids=np.resize(long.prompt_ids, PROMPT_TOKENS + 100))
    drawn = weights._drawn([long, short], rollouts, learner)
    assert [len(s.prompt.prompt_ids) for s in drawn] == [PROMPT_TOKENS, PROMPT_TOKENS, len(short.prompt_ids)]


def one_pass_lacks_memory() -> None:
    from fastgrpo.config import ParallelConfig

    ranks = Ranks.connect(torch.device("cpu"), ParallelConfig(timeout_s=60))
    rollouts, learner = parts(ranks)

    def fails(*_, **__):
        raise torch.OutOfMemoryError("on this rank alone")

    if ranks.rank == 1:
        learner.policy.own_logprobs = fails
    prove_weights(prompts(2), rollouts, learner, FLOATS)


@pytest.mark.slow
def test_a_rank_that_alone_lacks_memory_ends_with_its_reason_and_waits_for_nobody():
    with pytest.raises(AssertionError, match="on this rank alone"):
        run_ranks("from tests.proof.test_weights import *; one_pass_lacks_memory()", 2)


def test_whether_all_ranks_come_is_told_by_those_that_come(ranks):
    assert ranks.all_come("here", within_s=0.1)
    assert not replace(ranks, count=2).all_come("there", within_s=0.1)


def on_two_ranks() -> None:
    from fastgrpo.config import ParallelConfig

    ranks = Ranks.connect(torch.device("cpu"), ParallelConfig(timeout_s=60))
    rollouts, learner = parts(ranks)
    own, sampled = prove_weights(prompts(2), rollouts, learner, FLOATS)
    assert own.num_tokens == 2 * 3 * 16 and own.largest < 1e-4 and sampled.largest < 1e-4
    if ranks.rank == 1:
        rollouts.engine.model.model.norm.weight.data.mul_(1.05)
    with pytest.raises(WeightMismatch):  # on both
        probe(prompts(2), rollouts, learner, torch.float32)
    ranks.disconnect()


@pytest.mark.slow
def test_sharded_weights_are_whole_in_the_models_own_pass():
    run_ranks("from tests.proof.test_weights import on_two_ranks; on_two_ranks()", 2)
