"""From the rewards of a step to its advantages: what ``--objective.advantage`` names. A recipe may bring its own of the
same signature, (rewards [N], `Outcomes`) -> [N].

A sample that does not teach is in no mean and in no deviation, and its advantage is 0.
"""

from typing import Literal

import numpy as np
import torch
from fastgrpo_kernels import group_advantages

from fastgrpo.algorithm.outcomes import Outcomes, RewardFunction


def group_normalised(rewards: np.ndarray, outcomes: Outcomes) -> np.ndarray:  # [N], ... -> [N] float32
    """GRPO's ``(r - mean) / (std + 1e-6)`` with the unbiased standard deviation of the group (verl 0.4's constant).

    A group of equal rewards gives exactly 0, and so does one of which a single sample teaches.
    """
    return _in_groups(rewards, outcomes, scale="group").astype(np.float32)


def group_centred(rewards: np.ndarray, outcomes: Outcomes) -> np.ndarray:  # [N], ... -> [N] float32
    """Dr.GRPO's ``r - mean`` (arXiv 2503.20783, section 3.2)."""
    return _in_groups(rewards, outcomes).astype(np.float32)


def leave_one_out(rewards: np.ndarray, outcomes: Outcomes) -> np.ndarray:  # [N], ... -> [N] float32
    """RLOO's ``r`` less the mean of the other rewards of the group (arXiv 2402.14740, section 3.3)."""
    return _in_groups(rewards, outcomes, baseline="leave_one_out").astype(np.float32)


def batch_normalised(rewards: np.ndarray, outcomes: Outcomes) -> np.ndarray:  # [N], ... -> [N] float32
    """REINFORCE++-baseline's advantages: the group's mean off, then normalised over the step's response tokens.

    Source: ProRL-V2 (NVIDIA's blog); the weights by tokens and the floor of 1e-8 under the variance are those of
    NVIDIA-NeMo/RL docs/guides/prorlv2.md and of OpenRLHF. verl adds 1e-8 to a variance with Bessel's correction.
    """
    centred, teach = _in_groups(rewards, outcomes), outcomes.teaches
    mean, variance = _over_tokens(centred[teach], outcomes.num_sampled[teach])
    return np.where(teach, (centred - mean) / np.sqrt(max(variance, 1e-8)), 0.0).astype(np.float32)


def batch_whitened(rewards: np.ndarray, outcomes: Outcomes) -> np.ndarray:  # [N], ... -> [N] float32
    """Rewards normalised over all response tokens of the step, without any group: REINFORCE++ (arXiv 2501.03262), with
    the constants of AReaL's ``group_adv_norm=false``, which QuestA takes (foreverlasting1202/QuestA
    AReaL/scripts/partial_50_grpo.yaml). verl's differ as in `batch_normalised`."""
    exact, teach = np.asarray(rewards, dtype=np.float64), outcomes.teaches
    mean, variance = _over_tokens(exact[teach], outcomes.num_sampled[teach])
    return np.where(teach, (exact - mean) / (np.sqrt(variance) + 1e-5), 0.0).astype(np.float32)


ADVANTAGES: dict[str, RewardFunction] = {
    f.__name__: f for f in (group_normalised, group_centred, leave_one_out, batch_whitened, batch_normalised)
}
"""By the names that --objective.advantage has for them."""

NEED_NO_GROUP = {"batch_whitened"}


def _in_groups(
    rewards: np.ndarray,
    outcomes: Outcomes,
    baseline: Literal["mean", "leave_one_out"] = "mean",
    scale: Literal["group", "none"] = "none",
) -> np.ndarray:  # [N] float64
    exact, teach = np.asarray(rewards, dtype=np.float64), outcomes.teaches
    if teach.all():
        whole = torch.from_numpy(exact)
        return group_advantages(whole, outcomes.group_size, baseline=baseline, scale=scale, eps=1e-6).numpy()
    ends = np.cumsum(teach.reshape(-1, outcomes.group_size).sum(axis=1))
    cu_groups, those = torch.from_numpy(np.concatenate([[0], ends])), torch.from_numpy(exact[teach])
    advantages = np.zeros(len(teach))
    advantages[teach] = group_advantages(those, cu_groups=cu_groups, baseline=baseline, scale=scale, eps=1e-6).numpy()
    return advantages


def _over_tokens(values: np.ndarray, lengths: np.ndarray) -> tuple[float, float]:
    """Mean and population variance of values that stand at every token of their response."""
    if len(values) == 0:
        return 0.0, 0.0
    weights = np.asarray(lengths, dtype=np.float64) / max(np.sum(lengths), 1)
    mean = float(weights @ values)
    return mean, float(weights @ (values - mean) ** 2)
