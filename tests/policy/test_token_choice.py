"""Which tokens of an update act: by the papers' rules, keyed draws, and what an update makes of the choice."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fastgrpo.config import ObjectiveConfig, OptimizerConfig
from fastgrpo.policy.learner import Learner
from fastgrpo.policy.packing import SequenceCost
from fastgrpo.policy.policy import Policy
from fastgrpo.policy.sharding import shard
from fastgrpo.policy.token_choice import Choice, ResponseStatistics, choose
from fastgrpo.policy.token_masks import clip_cov, covariances, kl_cov, top_entropy, uniform_noise
from fastgrpo.policy.token_sums import TokenSums
from tests.tiny import sequences, tiny_model

RANDOM = np.random.default_rng(0)
ADVANTAGES, LOGPROBS = np.repeat(RANDOM.normal(size=40), 50), -RANDOM.exponential(size=2000)


def test_a_fifth_of_the_tokens_are_the_forks():
    entropies = RANDOM.exponential(size=1000)
    chosen = top_entropy(entropies, 0.2)
    assert chosen.sum() == 200 and entropies[chosen].min() > entropies[~chosen].max()
    assert top_entropy(np.full(7, 0.5), 0.2).all(), "equal ones are not told apart"
    assert top_entropy(np.zeros(0), 0.2).shape == (0,)


def test_covariances_are_products_of_deviations_and_their_mean_is_the_covariance():
    found = covariances(ADVANTAGES, LOGPROBS)
    assert found.mean() == pytest.approx(np.cov(ADVANTAGES, LOGPROBS, bias=True)[0, 1], rel=1e-12)
    assert covariances(np.zeros(0), np.zeros(0)).shape == (0,)


def test_clip_cov_draws_a_share_of_all_from_those_within_the_bounds():
    covariance = covariances(ADVANTAGES, LOGPROBS)
    within = (covariance > 0.5) & (covariance < 2.0)
    noise = RANDOM.random(2000)
    few, all_of_them = (clip_cov(covariance, noise, share, 0.5, 2.0) for share in (0.01, 0.99))
    assert few.sum() == 20 < within.sum() and not (few & ~within).any()
    assert noise[few].max() < noise[within & ~few].min()
    assert (all_of_them == within).all()
    assert clip_cov(covariance, noise, 1e-9, 0.5, 2.0).sum() == 1
    assert not clip_cov(covariance, noise, 0.01, 1e3, 2e3).any()


def test_kl_cov_takes_the_highest():
    covariance = covariances(ADVANTAGES, LOGPROBS)
    chosen = kl_cov(covariance, 0.01)
    assert chosen.sum() == 20 and covariance[chosen].min() > covariance[~chosen].max()
    assert kl_cov(np.zeros(500), 0.002).sum() == 1, "equal ones are not all taken"


def test_noise_is_a_function_of_seed_step_response_and_place():
    noise = uniform_noise([(7, 0), (7, 1)], [5, 3], seed=1, step=2)
    assert len(set(noise.tolist())) == 8 and ((noise >= 0) & (noise < 1)).all()
    assert uniform_noise([(7, 1)], [3], seed=1, step=2).tolist() == noise[5:].tolist()
    assert uniform_noise([(7, 1)], [2], seed=1, step=2).tolist() == noise[5:7].tolist()
    for other in ({"seed": 3, "step": 2}, {"seed": 1, "step": 3}):
        assert not set(uniform_noise([(7, 0), (7, 1)], [5, 3], **other).tolist()) & set(noise.tolist())


def statistics() -> list[ResponseStatistics]:
    lengths = [4, 1, 9, 6]
    logprobs, entropies = (np.split(RANDOM.normal(size=20), np.cumsum(lengths)[:-1]) for _ in range(2))
    keys = [(3, 0), (3, 1), (8, 0), (8, 1)]
    return [ResponseStatistics(*one) for one in zip(keys, [1.0, -1.0, 0.5, -0.5], logprobs, entropies, strict=True)]


@pytest.mark.parametrize("settings", [{"top_entropy": 0.3}, {"clip_cov": 0.1, "clip_cov_low": 0.0}, {"kl_cov": 0.1}])
def test_the_choice_does_not_depend_on_the_order_of_the_responses(settings):
    objective, known = ObjectiveConfig(**settings), statistics()
    first, second = (choose(one, objective, seed=1, step=2) for one in (known, known[::-1]))
    assert first.keys() == second.keys() and len(first) == 4
    for key, choice in first.items():
        assert (choice.acts == second[key].acts).all() and (choice.penalties == second[key].penalties).all()
    acts, penalised = (np.concatenate([getattr(c, n) for c in first.values()]) for n in ("acts", "penalties"))
    assert (penalised.sum(), acts.all()) == (2, True) if "kl_cov" in settings else 0 < acts.sum() < 20
    assert choose([], objective, seed=1, step=2) == {}


def test_each_step_of_each_run_draws_anew():
    known, settings = statistics(), ObjectiveConfig(clip_cov=0.3, clip_cov_low=0.0, clip_cov_high=99.0)
    chosen = [choose(known, settings, seed=seed, step=step) for seed, step in ((1, 2), (1, 3), (2, 2), (1, 2))]
    first, *others, again = (np.concatenate([choice.acts for choice in one.values()]) for one in chosen)
    assert (first == again).all() and not any((first == other).all() for other in others)


@pytest.fixture
def learner(ranks):
    def of(objective: ObjectiveConfig) -> Learner:
        model = tiny_model("qwen2", "fastgrpo_padded", torch.float64)
        policy = shard(Policy(model, 0.8, 16), ranks.mesh, torch.float64)
        settings = OptimizerConfig(tokens_per_microbatch=100)
        return Learner(policy, ranks, SequenceCost(100.0, 1.0), objective, settings)

    return of


def test_a_token_that_does_not_act_has_no_gradient_and_stays_in_the_denominator(learner):
    """Against the same update with its advantages set by hand; responses without advantage are among the tokens."""
    rows = [replace(s, advantage=0.0) if n % 4 == 0 else s for n, s in enumerate(sequences(12))]
    mine = learner(ObjectiveConfig(top_entropy=0.25))
    update = mine.with_chosen_tokens(mine.pack(rows), seed=1, step=1)
    assert sum(b.num_loss_tokens for b in update.batches) == sum(len(r.response) for r in rows)
    assert set(update.denominators) == {sum(len(r.response) for r in rows)}
    with torch.no_grad():
        entropies = torch.cat([mine.policy(b, entropy=True)[1] for b in update.batches])
    bound = torch.quantile(entropies, 0.75)
    by_hand = mine.pack(rows)
    for i, batch in enumerate(by_hand.batches):
        with torch.no_grad():
            low = mine.policy(batch, entropy=True)[1] < bound
        advantages = batch.advantages.index_fill(0, batch.response_rows[low], 0.0)
        assert torch.equal(advantages, update.batches[i].advantages)
        assert update.batches[i].old_logprobs is None, "in a first update they are the current ones"
        by_hand.batches[i] = replace(batch, advantages=advantages)
    found, expected = (gradients(mine, u) for u in (update, by_hand))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    whole = gradients(mine, mine.pack(rows))
    assert any(not torch.allclose(a, b) for a, b in zip(found, whole, strict=True))


def test_kl_cov_adds_the_size_of_the_log_ratio_in_the_place_of_clipping(learner):
    rows = sequences(9)
    mine = learner(ObjectiveConfig(kl_cov=0.1, kl_cov_coef=0.7))
    update = mine.with_chosen_tokens(replace(mine.pack(rows), is_first=False), seed=1, step=1)
    moved = [replace(b, old_logprobs=b.old_logprobs - 3 * torch.cos(9 * b.old_logprobs)) for b in update.batches]
    update = replace(update, batches=moved)
    count = sum(len(r.response) for r in rows)
    chosen = [torch.zeros(b.num_loss_tokens) if b.log_ratio_penalties is None else b.log_ratio_penalties for b in moved]
    assert sorted(torch.cat(chosen).unique().tolist()) == [0.0, 0.7]
    assert int((torch.cat(chosen) > 0).sum()) == int(0.1 * count)
    found = gradients(mine, update)
    for batch, penalties in zip(moved, chosen, strict=True):
        logprobs, _ = mine.policy(batch, entropy=False)
        log_ratio = logprobs - batch.old_logprobs
        each = -log_ratio.exp() * batch.at_responses(batch.advantages) + penalties * log_ratio.abs()
        (each.sum() / count).backward()
    for parameter, gradient in zip(mine.parameters, found, strict=True):
        torch.testing.assert_close(gradient, parameter.grad.full_tensor(), rtol=1e-8, atol=1e-11)


def test_a_choice_says_for_every_token_whether_it_acts_and_what_its_log_ratio_costs():
    (choice,) = choose(statistics()[:1], ObjectiveConfig(), seed=0, step=0).values()
    assert isinstance(choice, Choice) and choice.acts.all() and not choice.penalties.any()


def gradients(learner: Learner, update) -> list[torch.Tensor]:
    learner.backward(update, TokenSums.zero())
    found = [p.grad.full_tensor().clone() for p in learner.parameters]
    learner.optimizer.zero_grad()
    return found
