"""Rewards of a group to advantages: groups of one size in blocks of two dimensions, ragged ones a program each."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .rows import require_single

_BLOCK = 4096


def group_advantages(
    rewards: Tensor, cu_groups: Tensor | None, group_size: int, leave_one_out: bool, scale: bool, eps: float
) -> Tensor:
    require_single(rewards)
    # A reward that wrong boundaries leave out has no advantage.
    advantages = torch.empty_like(rewards) if cu_groups is None else torch.full_like(rewards, float("nan"))
    switches = {"LEAVE_ONE_OUT": leave_one_out, "SCALE": scale}
    num_groups = len(rewards) // group_size if cu_groups is None else len(cu_groups) - 1
    if num_groups == 0:
        return advantages
    if cu_groups is None and group_size <= _BLOCK:
        padded = triton.next_power_of_2(group_size)
        together = _BLOCK // padded
        _equal_groups[(triton.cdiv(num_groups, together),)](
            rewards, advantages, num_groups, group_size, eps, BLOCK_GROUPS=together, BLOCK_SIZE=padded,
            DENSE=padded == group_size, **switches,
        )  # fmt: skip
    else:
        _ragged_groups[(num_groups,)](
            rewards,
            advantages,
            cu_groups,
            len(rewards),
            group_size,
            eps,
            RAGGED=cu_groups is not None,
            BLOCK=1024,
            **switches,
        )
    return advantages


@triton.jit
def _factor(count, squares, eps, LEAVE_ONE_OUT: tl.constexpr, SCALE: tl.constexpr):
    """The factor of a centred reward; count and squares have one value a group."""
    others = tl.maximum(count - 1.0, 1.0)
    factor = count * 0.0 + 1.0
    if LEAVE_ONE_OUT:
        factor = count / others
    if SCALE:
        factor /= tl.sqrt(squares / others) + eps
    return factor


@triton.jit
def _equal_groups(
    rewards,  # [N]
    advantages,  # [N]
    num_groups,
    group_size,
    eps,
    LEAVE_ONE_OUT: tl.constexpr,
    SCALE: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    DENSE: tl.constexpr,  # group_size is BLOCK_SIZE: groups are aligned, and read by 128 bits
):
    groups = tl.program_id(0).to(tl.int64) * BLOCK_GROUPS + tl.arange(0, BLOCK_GROUPS)
    places = tl.arange(0, BLOCK_SIZE)
    stride = BLOCK_SIZE if DENSE else group_size
    at = groups[:, None] * stride + places[None, :]
    inside = (groups < num_groups)[:, None] & (places < stride)[None, :]
    r = tl.load(rewards + at, mask=inside, other=0.0)
    count = tl.zeros([BLOCK_GROUPS], tl.float32) + group_size
    first = tl.load(rewards + groups * group_size, mask=groups < num_groups, other=0.0)
    # From the first reward on: smaller numbers, and 0 where all are equal.
    r = tl.where(inside, r - first[:, None], 0.0)
    centred = tl.where(inside, r - (tl.sum(r, 1) / count)[:, None], 0.0)
    factor = _factor(count, tl.sum(centred * centred, 1), eps, LEAVE_ONE_OUT, SCALE)
    differing = tl.sum(tl.abs(r), 1) != 0  # also where a reward is NaN
    tl.store(advantages + at, tl.where(differing[:, None], centred * factor[:, None], 0.0), mask=inside)


@triton.jit
def _ragged_groups(
    rewards,  # [N]
    advantages,  # [N]
    cu_groups,  # [G + 1] or None
    num_rewards,
    group_size,
    eps,
    RAGGED: tl.constexpr,
    LEAVE_ONE_OUT: tl.constexpr,
    SCALE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    group = tl.program_id(0).to(tl.int64)
    begin, end = group * group_size, (group + 1) * group_size
    if RAGGED:
        # Wrong boundaries must not reach other memory; a CPU refuses them.
        begin = tl.maximum(tl.load(cu_groups + group), 0)
        end = tl.minimum(tl.load(cu_groups + group + 1), num_rewards)
    count = tl.maximum(end - begin, 1).to(tl.float32)
    first = tl.load(rewards + begin, mask=begin < end, other=0.0)
    total = tl.zeros([BLOCK], tl.float32)
    distance = tl.zeros([BLOCK], tl.float32)
    for start in range(begin, end, BLOCK):
        at = start + tl.arange(0, BLOCK)
        r = tl.where(at < end, tl.load(rewards + at, mask=at < end, other=0.0) - first, 0.0)
        total += r
        distance += tl.abs(r)
    mean = tl.sum(total, 0) / count
    squares = tl.zeros([BLOCK], tl.float32)
    for start in range(begin, end, BLOCK):
        at = start + tl.arange(0, BLOCK)
        centred = tl.where(at < end, tl.load(rewards + at, mask=at < end, other=0.0) - first - mean, 0.0)
        squares += centred * centred
    factor = _factor(count, tl.sum(squares, 0), eps, LEAVE_ONE_OUT, SCALE)
    differing = tl.sum(distance, 0) != 0  # also where a reward is NaN
    for start in range(begin, end, BLOCK):
        at = start + tl.arange(0, BLOCK)
        centred = tl.load(rewards + at, mask=at < end, other=0.0) - first - mean
        tl.store(advantages + at, tl.where(differing, centred * factor, 0.0), mask=at < end)
