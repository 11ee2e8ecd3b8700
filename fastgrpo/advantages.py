"""Rewards of a group to advantages."""

import numpy as np


def group_normalised(
    rewards: np.ndarray,  # [N] float, N a multiple of group_size
    group_size: int,
) -> np.ndarray:  # [N] float32
    """GRPO's ``(r - mean) / (std + 1e-6)`` with the unbiased standard deviation of the group (verl 0.4's constant).

    A group of equal rewards gives exactly 0.
    """
    groups = np.asarray(rewards, dtype=np.float64).reshape(-1, group_size)
    centred = groups - groups.mean(axis=1, keepdims=True)
    normalised = centred / (groups.std(axis=1, ddof=1, keepdims=True) + 1e-6)
    # The mean of equal numbers may differ from them by a rounding error, which 1e-6 would blow up.
    equal = (groups == groups[:, :1]).all(axis=1, keepdims=True)
    return np.where(equal, 0.0, normalised).reshape(-1).astype(np.float32)
