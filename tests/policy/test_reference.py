"""A divergence from a reference, a bonus for entropy and verl's weights, against autograd over all logits."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from fastgrpo.config import ObjectiveConfig, OptimizerConfig
from fastgrpo.policy.learner import Learner
from fastgrpo.policy.packing import SequenceCost
from fastgrpo.policy.policy import Policy
from fastgrpo.policy.reference import Reference
from fastgrpo.policy.sharding import shard
from fastgrpo.policy.token_sums import TokenSums
from fastgrpo.ranks import Ranks
from fastgrpo.types import Sample
from tests.tiny import sequences, tiny_model

ROWS = [replace(s, advantage=0.0) if n % 3 == 0 else s for n, s in enumerate(sequences(10))]
WHOLE = SequenceCost(100.0, 1.0)


def policy_of(ranks: Ranks, shift: float = 0.0) -> Policy:
    model = tiny_model("qwen2", "fastgrpo_padded", torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.0 + shift)
    return shard(Policy(model, 0.8, 16), ranks.mesh, torch.float64)


def learner_of(ranks: Ranks, shift: float = 0.05, budget: int = 100, **objective: Any) -> Learner:
    reference = Reference(policy_of(ranks, shift)) if objective.get("kl_coef") else None
    settings = OptimizerConfig(tokens_per_microbatch=budget, weight_decay=0.0)
    return Learner(policy_of(ranks), ranks, WHOLE, ObjectiveConfig(**objective), settings, True, reference)


def gradients(learner: Learner, sums: TokenSums | None = None) -> dict[str, torch.Tensor]:
    learner.backward(learner.pack(ROWS), sums or TokenSums.zero())
    found = {n: p.grad.full_tensor().clone() for n, p in learner.policy.model.named_parameters() if p.grad is not None}
    learner.optimizer.zero_grad()
    return found


def logits_of(policy: Policy, row: Sample) -> torch.Tensor:  # [response tokens, V]
    ids = torch.tensor([*row.prompt.prompt_ids, *row.response.response_ids], dtype=torch.int64)[None]
    logits = policy.model(ids).logits[0] / 0.8
    return logits[len(row.prompt.prompt_ids) - 1 : -1].log_softmax(-1)


def expected(objective: ObjectiveConfig, weight_of_row: list[float]) -> dict[str, torch.Tensor]:
    """By the definition: every response alone, all logits, one weight a token of each response."""
    model = tiny_model("qwen2", "sdpa", torch.float64)
    policy = Policy(model, 0.8, 16)
    other = tiny_model("qwen2", "sdpa", torch.float64)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.05)
    loss = torch.zeros((), dtype=torch.float64)
    for row, weight in zip(ROWS, weight_of_row, strict=True):
        ids = torch.tensor(row.response.response_ids, dtype=torch.int64)[:, None]
        every = logits_of(policy, row)
        logprobs = every.gather(1, ids)[:, 0]
        with torch.no_grad():
            ref = logits_of(Policy(other, 0.8, 16), row).gather(1, ids)[:, 0]
        log_ratio = logprobs - ref
        kl = {"k1": log_ratio, "k2": log_ratio**2 / 2, "k3": (-log_ratio).exp() - 1 + log_ratio}[objective.kl]
        if objective.kl_cap:
            kl = kl.clamp(-objective.kl_cap, objective.kl_cap)
        entropy = -(every.exp() * every).sum(-1)
        surrogate = (logprobs - logprobs.detach()).exp() * float(torch.tensor(row.advantage, dtype=torch.float32))
        tokens = -surrogate + objective.kl_coef * kl - objective.entropy_coef * entropy
        loss = loss + weight * tokens.sum()
    loss.backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def token_mean() -> list[float]:
    return [1 / sum(len(r.response) for r in ROWS)] * len(ROWS)


@pytest.mark.parametrize(
    "settings",
    [
        {"kl": "k1", "kl_coef": 0.3},
        {"kl": "k2", "kl_coef": 0.3, "kl_cap": 0.02},
        {"kl": "k3", "kl_coef": 0.3, "entropy_coef": 0.1},
        {"entropy_coef": 0.2},
    ],
    ids=str,
)
@pytest.mark.parametrize("loss_path", ["fused", "logprobs", "definition"])
def test_divergence_and_entropy_are_those_of_the_definition_for_responses_without_advantage_too(
    ranks, settings, loss_path
):
    found = gradients(learner_of(ranks, loss_path=loss_path, **settings))
    want = expected(ObjectiveConfig(**settings), token_mean())
    assert found.keys() == want.keys()
    for name, gradient in want.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-7, atol=1e-9)


def test_the_step_says_how_far_it_is_from_the_reference_and_a_reset_makes_it_nothing(ranks):
    learner, sums = learner_of(ranks, kl="k2", kl_coef=0.1), TokenSums.zero()
    gradients(learner, sums)
    num_tokens = sum(len(r.response) for r in ROWS)
    far = TokenSums.metrics(sums.values, num_tokens)["reference_kl"]
    assert far > 1e-4
    learner.reference.reset(learner.policy)
    sums = TokenSums.zero()
    gradients(learner, sums)
    assert TokenSums.metrics(sums.values, num_tokens)["reference_kl"] == 0.0
    assert not any(p.requires_grad for p in learner.reference.policy.parameters())


def test_without_a_divergence_no_reference_is_asked_and_no_metric_speaks_of_one(ranks):
    sums = TokenSums.zero()
    gradients(learner_of(ranks), sums)
    assert "reference_kl" not in TokenSums.metrics(sums.values, 10)


def test_microbatch_mean_weighs_a_token_as_verl_does(ranks):
    """verl 0.4: the token mean of a micro-batch, times its share of the responses (dp_actor.py)."""
    learner = learner_of(ranks, budget=60, aggregation="microbatch_mean")
    batches = learner.pack(ROWS).batches
    assert len(batches) > 1 and sum(len(b.cu_seqlens) - 1 for b in batches) == len(ROWS)  # none is left out
    place = {r.response.response_ids.tobytes(): n for n, r in enumerate(ROWS)}
    weights = [0.0] * len(ROWS)
    for batch in batches:
        parts = batch.at_responses(batch.target_ids).int().split(batch.cu_responses.diff().tolist())
        for part in parts:
            weights[place[part.numpy().tobytes()]] = len(parts) / len(ROWS) / batch.num_loss_tokens
    found, want = gradients(learner), expected(ObjectiveConfig(), weights)
    for name, gradient in want.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-7, atol=1e-9)
    mean = expected(ObjectiveConfig(), token_mean())
    assert any((mean[n] - g).abs().max() > 1e-4 * g.abs().max() for n, g in want.items())


def test_a_cleared_optimizer_moves_as_a_new_one(ranks):
    moved = []
    for clear in (False, True):
        learner = learner_of(ranks)
        for _ in range(2):
            learner.backward(learner.pack(ROWS), TokenSums.zero())
            before = [p.detach().clone() for p in learner.parameters]
            learner.apply(1e-3)
            if clear:
                learner.clear_optimizer()
        moved.append([(p - b).full_tensor() for p, b in zip(learner.parameters, before, strict=True)])
    assert any(not torch.equal(a, b) for a, b in zip(*moved, strict=True))
    for step in moved[1]:  # AdamW's first step is of the learning rate's size wherever there is a gradient
        assert step.abs().max() < 1.001e-3
