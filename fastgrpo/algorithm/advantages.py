"""From the rewards of a step to its advantages. A recipe names one of these, or brings its own of the same signature:
(rewards [N], `Outcomes`) -> [N]."""

import numpy as np
import torch
from fastgrpo_kernels import group_advantages

from fastgrpo.algorithm.outcomes import Outcomes


def group_normalised(rewards: np.ndarray, outcomes: Outcomes) -> np.ndarray:  # [N], ... -> [N] float32
    """GRPO's ``(r - mean) / (std + 1e-6)`` with the unbiased standard deviation of the group (verl 0.4's constant).

    A group of equal rewards gives exactly 0.
    """
    exact = torch.from_numpy(np.asarray(rewards, dtype=np.float64))
    return group_advantages(exact, outcomes.group_size, eps=1e-6).numpy().astype(np.float32)


def batch_normalised(rewards: np.ndarray, outcomes: Outcomes) -> np.ndarray:  # [N], ... -> [N] float32
    """REINFORCE++-baseline's advantages: the group's mean off, then normalised over the step's response tokens.

    Source: ProRL-V2 (NVIDIA's blog); the weights by tokens and the floor of 1e-8 under the variance are those of
    NVIDIA-NeMo/RL docs/guides/prorlv2.md.
    """
    exact = torch.from_numpy(np.asarray(rewards, dtype=np.float64))
    centred = group_advantages(exact, outcomes.group_size, scale="none").numpy()
    mean, variance = _over_tokens(centred, outcomes.num_sampled)
    return ((centred - mean) / np.sqrt(max(variance, 1e-8))).astype(np.float32)


def batch_whitened(rewards: np.ndarray, outcomes: Outcomes) -> np.ndarray:  # [N], ... -> [N] float32
    """Rewards normalised over all response tokens of the step, without any group: AReaL's ``group_adv_norm=false``,
    which QuestA takes (foreverlasting1202/QuestA AReaL/scripts/partial_50_grpo.yaml)."""
    exact = np.asarray(rewards, dtype=np.float64)
    mean, variance = _over_tokens(exact, outcomes.num_sampled)
    return ((exact - mean) / (np.sqrt(variance) + 1e-5)).astype(np.float32)


def _over_tokens(values: np.ndarray, lengths: np.ndarray) -> tuple[float, float]:
    """Mean and population variance of values that stand at every token of their response."""
    if len(values) == 0:
        return 0.0, 0.0
    weights = np.asarray(lengths, dtype=np.float64) / max(np.sum(lengths), 1)
    mean = float(weights @ values)
    return mean, float(weights @ (values - mean) ** 2)
