"""Rewards of a group to advantages."""

import numpy as np
import torch
from fastgrpo_kernels import group_advantages


def group_normalised(
    rewards: np.ndarray,  # [N] float, N a multiple of group_size
    group_size: int,
) -> np.ndarray:  # [N] float32
    """GRPO's ``(r - mean) / (std + 1e-6)`` with the unbiased standard deviation of the group (verl 0.4's constant).

    A group of equal rewards gives exactly 0.
    """
    exact = torch.from_numpy(np.asarray(rewards, dtype=np.float64))
    return group_advantages(exact, group_size, eps=1e-6).numpy().astype(np.float32)
