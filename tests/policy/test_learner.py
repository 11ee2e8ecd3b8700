"""What an update does besides its gradient."""

import pytest
import torch

from fastgrpo.config import ObjectiveConfig, OptimizerConfig
from fastgrpo.packing import SequenceCost
from fastgrpo.policy.learner import Learner, TokenSums
from fastgrpo.policy.model import Policy
from fastgrpo.policy.optimizer import clip, learning_rate
from fastgrpo.policy.sharding import shard
from fastgrpo.ranks import Ranks
from tests.tiny import sequences, tiny_model


def gradients(ranks: Ranks, architecture: str, checkpointing: bool) -> list[torch.Tensor]:
    model = tiny_model(architecture, "fastgrpo_padded")
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    policy = shard(Policy(model, 1.0, 16), ranks.mesh, torch.float32)
    settings = OptimizerConfig(tokens_per_microbatch=128)
    learner = Learner(policy, ranks, SequenceCost(100.0, 1.0), ObjectiveConfig(), settings)
    learner.backward(learner.with_rollout_logprobs(learner.pack(sequences(9))), TokenSums.zero())
    return [p.grad.full_tensor() for p in learner.parameters]


@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
def test_activation_checkpointing_changes_no_gradient_with_tied_and_untied_heads(ranks, architecture):
    for plain, checkpointed in zip(
        gradients(ranks, architecture, False), gradients(ranks, architecture, True), strict=True
    ):
        torch.testing.assert_close(plain, checkpointed)


def test_gradients_are_scaled_down_to_the_norm_and_never_up():
    for norm, expected in ((4.0, 1.0), (0.5, 0.5)):
        gradient = [torch.full((4,), norm / 2)]
        clip(gradient, torch.tensor(norm), 1.0)
        assert float(gradient[0].norm()) == pytest.approx(expected, rel=1e-5)


def test_the_learning_rate_rises_linearly_and_stays():
    settings = OptimizerConfig(learning_rate=1.0, warmup_steps=10)
    assert [learning_rate(settings, s) for s in (1, 5, 10, 11, 999)] == pytest.approx([0.1, 0.5, 1.0, 1.0, 1.0])
    assert learning_rate(OptimizerConfig(learning_rate=1.0, warmup_steps=0), 1) == 1.0
