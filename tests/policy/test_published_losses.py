"""Every published loss, from its name to the gradient of an update, against its formula, which is written down here
response by response in float64, from the papers and not from the parts."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import get_args

import numpy as np
import pytest
import torch
from fastgrpo_kernels.dispatch import forced
from fastgrpo_kernels.objective import Ratio, Surrogate
from torch import Tensor

from fastgrpo.config import ObjectiveConfig, OptimizerConfig
from fastgrpo.config import published_losses as losses
from fastgrpo.policy.learner import Learner
from fastgrpo.policy.packing import SequenceCost
from fastgrpo.policy.policy import Policy
from fastgrpo.policy.sharding import shard
from fastgrpo.policy.token_sums import TokenSums
from fastgrpo.types import Response, Sample
from tests.tiny import sequences, tiny_model

TEMPERATURE, LONGEST = 0.8, 40
Losses = Callable[[Tensor, Tensor, float], Tensor]
"""(logprobs [n], old logprobs [n], advantage) -> losses of a response's tokens [n]."""


def clipped(low: float, high: float, dual: float = math.inf) -> Losses:
    """PPO eq. 7; with dual clip, Ye 2020 eq. 5."""

    def of(new: Tensor, old: Tensor, advantage: float) -> Tensor:
        ratio = (new - old).exp()
        worth = torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)
        return -(worth.clamp(min=dual * advantage) if advantage < 0 and dual < math.inf else worth)

    return of


def gspo(low: float, high: float) -> Losses:
    """GSPO eq. 5 and 7: the n-th root of the ratio of the responses' probabilities, at each of its tokens."""

    def of(new: Tensor, old: Tensor, advantage: float) -> Tensor:
        s = ((new.sum() - old.sum()) / len(new)).exp()
        return -torch.minimum(s * advantage, s.clamp(1 - low, 1 + high) * advantage).expand(len(new))

    return of


def gmpo(width: float) -> Losses:
    """GMPO eq. 4: |A| ** (1 / n) at each token, under a product of ratios that are clipped within exp(+-width)."""

    def of(new: Tensor, old: Tensor, advantage: float) -> Tensor:
        sign = math.copysign(1.0, advantage)
        ratio = (new - old).exp()
        each = torch.minimum(ratio**sign, ratio.clamp(math.exp(-width), math.exp(width)) ** sign) ** sign
        return -(each.prod() ** (1 / len(new)) * advantage).expand(len(new))

    return of


def cispo(cap: float) -> Losses:
    """MiniMax-M1 eq. 4, without a lower bound."""
    return lambda new, old, advantage: -((new - old).exp().clamp(max=cap).detach() * advantage * new)


def sapo(positive: float, negative: float) -> Losses:
    """SAPO: a gate of height 4 / tau around the ratio 1."""

    def of(new: Tensor, old: Tensor, advantage: float) -> Tensor:
        tau = positive if advantage > 0 else negative
        return -4 / tau / (1 + (-tau * ((new - old).exp() - 1)).exp()) * advantage

    return of


def dppo(bound: float) -> Losses:
    """DPPO eq. 12 with total variation: no gradient where the update would go further away than the bound."""

    def of(new: Tensor, old: Tensor, advantage: float) -> Tensor:
        further = (new.exp() - old.exp()).detach() * (1 if advantage > 0 else -1) > bound
        return -torch.where(further, 0.0, (new - old).exp().detach() * advantage * new)

    return of


Total = Callable[[list[Tensor]], Tensor]


def token_mean(each: list[Tensor]) -> Tensor:
    return sum(x.sum() for x in each) / sum(len(x) for x in each)


def mean_of_means(each: list[Tensor]) -> Tensor:
    return sum(x.sum() / len(x) for x in each) / len(each)


def mean_of_sums(each: list[Tensor], over: int = 1) -> Tensor:
    return sum(x.sum() for x in each) / over / len(each)


def over_the_longest(each: list[Tensor]) -> Tensor:
    return mean_of_sums(each, LONGEST)


PUBLISHED: dict[str, tuple[Losses, Total, float]] = {  # and how far tokens have drifted
    "grpo": (clipped(0.2, 0.28, 10.0), token_mean, 3.0),
    "dr_grpo": (clipped(0.2, 0.2), over_the_longest, 0.5),
    "dapo": (clipped(0.2, 0.28), token_mean, 0.5),
    "gspo": (gspo(3e-4, 4e-4), mean_of_means, 2e-3),
    "cispo": (cispo(5.0), token_mean, 2.5),
    "rloo": (clipped(0.2, 0.2), token_mean, 0.5),
    "reinforce_pp": (clipped(0.2, 0.2), token_mean, 0.5),
    "reinforce_pp_baseline": (clipped(0.2, 0.2), token_mean, 0.5),
    "sapo": (sapo(1.0, 1.05), mean_of_means, 1.0),
    "gmpo": (gmpo(0.4), mean_of_means, 1.0),
    "luspo": (gspo(2e-3, 2.5e-3), mean_of_sums, 1e-2),
    "dppo": (dppo(0.15), over_the_longest, 1.0),
}


def naive_logprobs(model: torch.nn.Module, row: Sample) -> Tensor:  # of the response
    ids = torch.from_numpy(np.concatenate([row.prompt.prompt_ids, row.response.response_ids]).astype(np.int64))
    first = len(row.prompt.prompt_ids)
    logits = model(ids[None]).logits[0, first - 1 : -1]
    return torch.log_softmax(logits / TEMPERATURE, dim=-1).gather(1, ids[first:, None])[:, 0]


@cache
def rows() -> list[Sample]:
    """Twelve ragged responses to four prompts, one without advantage; of half of them tokens are likely ones."""
    drawn = sequences(12, longest=14)
    drawn = [replace(row, prompt=drawn[i - i % 3].prompt) for i, row in enumerate(drawn)]
    model = tiny_model("qwen2", "sdpa", torch.float64)
    likely = [replace(row, response=as_likely(model, row)) if i % 2 else row for i, row in enumerate(drawn)]
    return [replace(row, advantage=0.0) if i == 4 else row for i, row in enumerate(likely)]


@torch.no_grad()
def as_likely(model: torch.nn.Module, row: Sample) -> Response:
    ids = torch.from_numpy(row.prompt.prompt_ids.astype(np.int64))
    for _ in range(len(row.response)):
        ids = torch.cat([ids, model(ids[None]).logits[0, -1].argmax()[None]])
    return replace(row.response, response_ids=ids[len(row.prompt.prompt_ids) :].numpy().astype(np.int32))


@cache
def old_logprobs(drift: float) -> list[Tensor]:
    random, model = np.random.default_rng(5), tiny_model("qwen2", "sdpa", torch.float64)
    with torch.no_grad():
        current = [naive_logprobs(model, row) for row in rows()]
    # A probability is 1 at most.
    return [(c + torch.from_numpy(random.uniform(-drift, drift, len(c)))).clamp(max=-1e-3) for c in current]


@cache
def by_hand(name: str) -> tuple[float, dict[str, Tensor], list[float]]:
    """Loss and gradient of the whole update, and how much each token's logprob matters for it."""
    of_token, total, drift = PUBLISHED[name]
    model = tiny_model("qwen2", "sdpa", torch.float64)
    new = [naive_logprobs(model, row) for row in rows()]
    advantages = [float(np.float32(row.advantage)) for row in rows()]
    each = [of_token(*one) for one in zip(new, old_logprobs(drift), advantages, strict=True)]
    loss = total(each)
    slopes = torch.cat(torch.autograd.grad(loss, new, retain_graph=True)).tolist()
    loss.backward()
    return loss.item(), {n: p.grad for n, p in model.named_parameters()}, slopes


def learner_of(ranks, objective: ObjectiveConfig, **settings) -> Learner:
    model = tiny_model("qwen2", "fastgrpo_padded", torch.float64)
    policy = shard(Policy(model, TEMPERATURE, 16), ranks.mesh, torch.float64)
    cost = SequenceCost(100.0, 1.0)
    return Learner(policy, ranks, cost, objective, OptimizerConfig(**settings), max_response_tokens=LONGEST)


def test_the_names_of_the_parts_are_the_kernels_and_every_loss_is_here():
    assert get_args(losses.Surrogate) == get_args(Surrogate) and get_args(losses.Ratio) == get_args(Ratio)
    assert PUBLISHED.keys() == losses.PRESETS.keys() == set(get_args(losses.Loss))


@pytest.mark.parametrize(
    "loss_path, tokens_per_microbatch", [("fused", 45), ("fused", 4096), ("logprobs", 45), ("definition", 4096)]
)
@pytest.mark.parametrize("name", PUBLISHED)
def test_loss_and_gradient_are_the_paper_s(ranks, name, loss_path, tokens_per_microbatch):
    expected, gradients, _ = by_hand(name)
    objective = ObjectiveConfig(loss=name, loss_path=loss_path)
    learner = learner_of(ranks, objective, tokens_per_microbatch=tokens_per_microbatch)
    update = learner.pack(rows())
    assert (len(update.batches) > 3) == (tokens_per_microbatch == 45)
    of_row = {
        row.response.response_ids.tobytes(): o for row, o in zip(rows(), old_logprobs(PUBLISHED[name][2]), strict=True)
    }
    loss = 0.0
    with forced("plain"):
        for i, (batch, denominator) in enumerate(zip(update.batches, update.denominators, strict=True)):
            parts = batch.at_responses(batch.target_ids).int().split(batch.cu_responses.diff().tolist())
            old = torch.cat([of_row[part.numpy().tobytes()] for part in parts])
            update.batches[i] = batch = replace(batch, old_logprobs=old)
            with torch.no_grad():
                loss += float(learner.loss(learner.policy, batch, denominator, learner.objective, False).loss)
        learner.backward(update, TokenSums.zero())
    assert loss == pytest.approx(expected, rel=1e-9)
    for parameter, gradient in zip(learner.parameters, gradients.values(), strict=True):
        torch.testing.assert_close(parameter.grad.full_tensor(), gradient, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_cases_have_tokens_on_both_sides_of_every_bound(name):
    """Where a bound takes the gradient away; CISPO's and SAPO's take none."""
    moves = np.array(by_hand(name)[2]) != 0
    acts = np.repeat([row.advantage != 0 for row in rows()], [len(row.response) for row in rows()])
    assert not moves[~acts].any()
    held = 1 - moves[acts].mean()
    assert held == 0 if name in ("cispo", "sapo") else 0.05 < held < 0.9
