"""From the rewards of a group to its advantages."""

import math
from typing import Any, Literal

import torch
from torch import Tensor

from ._ops import add_op_namespace_prefix
from .checks import boundaries, require
from .derivatives import check_derivatives
from .dispatch import running_on
from .primitives import statistics_dtype

Baseline = Literal["mean", "leave_one_out"]
Scale = Literal["group", "batch", "none"]


def group_advantages(
    rewards: Tensor,  # [N]
    group_size: int | None = None,
    *,
    cu_groups: Tensor | None = None,  # [G + 1] rewards before each group
    baseline: Baseline = "mean",
    scale: Scale = "group",
    eps: float = 1e-6,
) -> Tensor:  # [N] float32 (float64 for float64)
    """Each reward minus its group's baseline, over a standard deviation if ``scale`` names one.

    Groups have ``group_size`` rewards each, or, where they differ, the boundaries ``cu_groups``.

    GRPO as JustRL has it: ``(r - mean) / (std + eps)``, std with Bessel's correction. Dr.GRPO: ``scale="none"``.
    RLOO: ``baseline="leave_one_out", scale="none"``, minus the mean of the others. REINFORCE++-baseline (ProRL-V2):
    ``scale="batch"``, minus the group's mean, then over the standard deviation of all N. A group of one and a group
    of equal rewards give exactly 0.

    Advantages have no gradient. Raises ValueError unless just one of ``group_size`` and ``cu_groups`` is given and
    fits, and for rewards that ask for a gradient.
    """
    require(rewards.dim() == 1, lambda: f"rewards must be [N], got {list(rewards.shape)}")
    require(not rewards.is_complex(), lambda: f"rewards must be real, got {rewards.dtype}")
    require(0 <= eps < math.inf, lambda: f"eps must be 0 or more, got {eps}")
    check_derivatives("group_advantages", {}, {"rewards": rewards})
    require((group_size is None) != (cu_groups is None), "give group_size, or cu_groups for ragged groups")
    require(baseline in ("mean", "leave_one_out"), lambda: f"baseline must be mean or leave_one_out, got {baseline!r}")
    require(scale in ("group", "batch", "none"), lambda: f"scale must be group, batch or none, got {scale!r}")
    if group_size is not None:
        require(
            group_size > 0 and len(rewards) % group_size == 0,
            lambda: f"{len(rewards)} rewards are not groups of {group_size}",
        )
    rewards = rewards.detach().to(statistics_dtype(rewards.dtype)).contiguous()
    if cu_groups is not None:
        boundaries(cu_groups, "cu_groups", len(rewards))
        cu_groups = cu_groups.to(torch.int64).contiguous()
    return _group_advantages(rewards, cu_groups, group_size or 0, baseline == "leave_one_out", scale, eps)


@torch.library.custom_op(add_op_namespace_prefix("group_advantages"), mutates_args=())
def _group_advantages(
    rewards: Tensor, cu_groups: Tensor | None, group_size: int, leave_one_out: bool, scale: str, eps: float
) -> Tensor:
    with running_on(rewards) as primitives:
        advantages = primitives.group_advantages(rewards, cu_groups, group_size, leave_one_out, scale == "group", eps)
    if scale == "batch" and len(advantages) > 1:
        advantages = advantages / (advantages.std() + eps)
    return advantages


@_group_advantages.register_fake
def _(rewards: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(rewards)
