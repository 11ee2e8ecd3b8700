import numpy as np
import torch

from fastgrpo.advantages import group_normalised


def test_advantages_are_normalised_with_the_unbiased_deviation_of_their_group():
    rewards = np.array([1, -1, -1, -1, 0.5, 0.25, 0.25, 2.0], dtype=np.float32)
    groups = torch.tensor(rewards, dtype=torch.float64).view(2, 4)
    expected = (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-6)  # torch.std is unbiased
    np.testing.assert_allclose(group_normalised(rewards, 4), expected.flatten().numpy(), rtol=1e-6)


def test_equal_rewards_give_exactly_zero():
    for value in (0.1, 1 / 3, -1.0, 1e9, 1e-9):
        assert not group_normalised(np.full(24, value, dtype=np.float32), 8).any()


def test_groups_do_not_see_each_other():
    random = np.random.default_rng(0)
    rewards = random.normal(size=32).astype(np.float32)
    whole = group_normalised(rewards, 8)
    for k in range(4):
        assert (whole[8 * k : 8 * k + 8] == group_normalised(rewards[8 * k : 8 * k + 8], 8)).all()
