from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch

from fastgrpo.algorithm import batch_normalised, batch_whitened, group_centred, group_normalised, leave_one_out
from fastgrpo.algorithm.advantages import ADVANTAGES, NEED_NO_GROUP
from fastgrpo.config import Advantage
from tests.tiny import groups_of


def test_advantages_are_normalised_with_the_unbiased_deviation_of_their_group():
    rewards = np.array([1, -1, -1, -1, 0.5, 0.25, 0.25, 2.0], dtype=np.float32)
    groups = torch.tensor(rewards, dtype=torch.float64).view(2, 4)
    expected = (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-6)  # torch.std is unbiased
    np.testing.assert_allclose(group_normalised(rewards, groups_of(4)), expected.flatten().numpy(), rtol=1e-6)


def test_equal_rewards_give_exactly_zero():
    for value in (0.1, 1 / 3, -1.0, 1e9, 1e-9):
        assert not group_normalised(np.full(24, value, dtype=np.float32), groups_of(8)).any()


def test_groups_do_not_see_each_other():
    random = np.random.default_rng(0)
    rewards = random.normal(size=32).astype(np.float32)
    whole = group_normalised(rewards, groups_of(8))
    for k in range(4):
        assert (whole[8 * k : 8 * k + 8] == group_normalised(rewards[8 * k : 8 * k + 8], groups_of(8))).all()


def at_every_token(values: np.ndarray, lengths: np.ndarray) -> torch.Tensor:
    return torch.tensor(np.repeat(values, lengths), dtype=torch.float64)


def test_batch_normalised_advantages_have_no_mean_and_unit_variance_over_the_tokens():
    random = np.random.default_rng(0)
    rewards, lengths = random.normal(size=12), random.integers(1, 90, 12)
    centred = rewards - np.repeat(rewards.reshape(3, 4).mean(1), 4)
    tokens = at_every_token(centred, lengths)
    expected = (tokens - tokens.mean()) / tokens.var(correction=0).clamp(min=1e-8).sqrt()
    found = at_every_token(batch_normalised(rewards, groups_of(4, lengths)), lengths)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert abs(float(found.mean())) < 1e-6 and float(found.var(correction=0)) == pytest.approx(1.0, abs=1e-5)


def test_batch_whitened_advantages_know_no_groups():
    random = np.random.default_rng(1)
    rewards, lengths = 5.0 * random.integers(0, 2, 12), random.integers(1, 90, 12)
    tokens = at_every_token(rewards, lengths)
    expected = (tokens - tokens.mean()) / (tokens.std(correction=0) + 1e-5)
    found = batch_whitened(rewards, groups_of(4, lengths))
    torch.testing.assert_close(at_every_token(found, lengths), expected, rtol=1e-6, atol=1e-6)
    assert (found == batch_whitened(rewards, groups_of(3, lengths))).all()


def test_equal_rewards_and_no_rewards_are_no_division_by_zero():
    for advantages in (batch_normalised, batch_whitened):
        assert not advantages(np.full(8, 0.3), groups_of(4, np.arange(1, 9))).any()
        assert advantages(np.zeros(0), groups_of(4, np.zeros(0, np.int64))).shape == (0,)


def test_centred_advantages_are_without_the_group_s_mean_or_that_of_its_others():
    rewards = np.random.default_rng(2).normal(size=12)
    groups = rewards.reshape(3, 4)
    centred = groups - groups.mean(1, keepdims=True)
    others = np.stack([groups[:, [j for j in range(4) if j != i]].mean(1) for i in range(4)], axis=1)
    np.testing.assert_allclose(group_centred(rewards, groups_of(4)), centred.flatten(), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(leave_one_out(rewards, groups_of(4)), (groups - others).flatten(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ADVANTAGES)
def test_a_sample_that_does_not_teach_is_in_no_mean_and_has_no_advantage(name):
    """Its reward and its length may be anything; the others have the advantages that they have without it."""
    random = np.random.default_rng(3)
    rewards, lengths = random.normal(size=20), random.integers(1, 90, 20)
    teaches = np.ones(20, bool)
    teaches[[1, 4, 6, 7, 15, 16, 17, 18, 19]] = False  # groups of 4, 2, 4, 1 and 0
    outcomes = replace(groups_of(4, lengths), teaches=teaches)
    found = ADVANTAGES[name](rewards, outcomes)
    assert found.dtype == np.float32 and not found[~teaches].any()
    other = ADVANTAGES[name](
        np.where(teaches, rewards, random.normal(size=20)), replace(outcomes, num_sampled=np.where(teaches, lengths, 7))
    )
    assert (found == other).all()
    sizes = teaches.reshape(5, 4).sum(1)
    groups = np.split(rewards[teaches], np.cumsum(sizes)[:-1])
    if name == "group_normalised":
        alone = [group_normalised(g, groups_of(len(g), np.ones(len(g), np.int64))) for g in groups if len(g)]
        np.testing.assert_allclose(found[teaches], np.concatenate(alone), rtol=1e-6, atol=1e-7)
    if name in NEED_NO_GROUP:
        alone = batch_whitened(rewards[teaches], groups_of(1, lengths[teaches]))
        np.testing.assert_allclose(found[teaches], alone, rtol=1e-6)
    if name == "batch_normalised":
        centred = np.concatenate([g - g.mean() if len(g) > 1 else np.zeros(len(g)) for g in groups])
        tokens = at_every_token(centred, lengths[teaches])
        expected = (tokens - tokens.mean()) / tokens.std(correction=0)
        torch.testing.assert_close(at_every_token(found[teaches], lengths[teaches]), expected, rtol=1e-5, atol=1e-6)


def test_every_name_of_the_setting_is_a_function():
    assert ADVANTAGES.keys() == set(get_args(Advantage))
