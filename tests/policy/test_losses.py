"""The fused way to an update is the definition's: from the same weights, the same weights."""

import pytest
import torch

from fastgrpo.config import ObjectiveConfig, OptimizerConfig
from fastgrpo.policy.learner import Learner
from fastgrpo.policy.losses import LOSSES
from fastgrpo.policy.packing import SequenceCost
from fastgrpo.policy.policy import Policy
from fastgrpo.policy.sharding import full_weights, shard
from fastgrpo.policy.token_sums import TokenSums
from fastgrpo.ranks import Ranks
from tests.tiny import sequences, tiny_model

Weights = dict[str, torch.Tensor]
STATES = {"as drawn": 0, "after one update": 1, "after three": 3}


def updated(
    ranks: Ranks, start: Weights | None, loss_path: str, dtype: torch.dtype, num_updates: int = 1
) -> tuple[Weights, torch.Tensor]:
    """Weights after updates by this path, off-policy, and the metrics' sums."""
    model = tiny_model("qwen2", "fastgrpo_padded", dtype)
    if start is not None:
        model.load_state_dict(
            {name: w.to(dtype) for name, w in start.items()}, strict=False
        )  # the tied head is not in it
    policy = shard(Policy(model, 0.8, 16), ranks.mesh, dtype)
    settings = OptimizerConfig(tokens_per_microbatch=200)
    learner = Learner(policy, ranks, SequenceCost(100.0, 1.0), ObjectiveConfig(loss_path=loss_path), settings)
    sums = TokenSums.zero()
    for _ in range(num_updates):
        learner.backward(learner.with_rollout_logprobs(learner.pack(sequences(24))), sums)
        learner.apply(1e-3)
    return {name: w.detach().clone() for name, w in full_weights(policy)}, sums.values


@pytest.mark.parametrize("state", STATES)
def test_one_update_on_any_head_gives_the_same_weights(ranks, state):
    start = updated(ranks, None, "definition", torch.float64, STATES[state])[0]
    oracle, sums = updated(ranks, start, "definition", torch.float64)
    assert any(not torch.equal(w, start[name]) for name, w in oracle.items())
    plain, _ = updated(ranks, start, "definition", torch.float32)
    for loss_path in LOSSES:
        exact, own_sums = updated(ranks, start, loss_path, torch.float64)
        torch.testing.assert_close(own_sums, sums, rtol=1e-9, atol=1e-9)
        for name, expected in oracle.items():
            torch.testing.assert_close(exact[name], expected, rtol=1e-9, atol=1e-11)
        # Over all weights: AdamW makes whole steps of gradients that are nothing but rounding, here or there.
        single, _ = updated(ranks, start, loss_path, torch.float32)
        off, plain_off = (float((joined(w) - joined(oracle)).norm()) for w in (single, plain))
        assert off <= 2 * plain_off + 1e-6 * float(joined(oracle).norm()), loss_path


def joined(weights: Weights) -> torch.Tensor:
    return torch.cat([w.double().flatten() for w in weights.values()])
