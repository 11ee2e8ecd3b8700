"""Buffers are no weights: nothing that trains or syncs writes them, so sampler and trainer load the same."""

import pytest
import torch

from fastgrpo.config import ObjectiveConfig, OptimizerConfig
from fastgrpo.policy.learner import Learner
from fastgrpo.policy.packing import SequenceCost
from fastgrpo.policy.policy import Policy
from fastgrpo.policy.sharding import full_weights, shard
from fastgrpo.policy.token_sums import TokenSums
from tests.tiny import sequences, tiny_model


@pytest.mark.parametrize("architecture", ["qwen2", "deepseek_v3", "gpt_oss"])
def test_an_update_changes_weights_and_no_buffer(ranks, architecture):
    """DeepSeek chooses experts by a bias that its own pretraining moved, and that transformers keeps as a buffer."""
    policy = Policy(tiny_model(architecture, "fastgrpo_padded"), 1.0, 16)
    before = {n: b.clone() for n, b in policy.named_buffers()}
    learner = Learner(
        shard(policy, ranks.mesh, torch.float32),
        ranks,
        SequenceCost(100.0, 1.0),
        ObjectiveConfig(),
        OptimizerConfig(tokens_per_microbatch=200),
    )
    weights = {n: w.clone() for n, w in full_weights(policy)}
    learner.backward(learner.with_rollout_logprobs(learner.pack(sequences(12))), TokenSums.zero())
    learner.apply(1e-2)
    moved = {n for n, w in full_weights(policy) if not torch.equal(w, weights[n])}
    assert len(moved) > len(weights) / 2
    assert before.keys() == dict(policy.named_buffers()).keys() and before
    for name, buffer in policy.named_buffers():
        assert torch.equal(buffer, before[name]), name
    if architecture == "deepseek_v3":
        assert any("e_score_correction_bias" in name for name in before)
