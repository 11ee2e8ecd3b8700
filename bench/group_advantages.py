"""Rewards to advantages in groups of 8, beside a copy of as many bytes and eager torch.

Ours gives exactly 0 for a group of equal rewards; eager torch does not look for such groups.
"""

from collections.abc import Callable, Sequence

import torch
from fastgrpo_kernels import group_advantages, reference
from torch import Tensor

from bench.head_implementations import backends, within
from bench.kernel_inputs import GROUP_SIZE, RewardInputs
from bench.kernel_subjects import Headline, Implementation, Measured, Outcome, Shape, Subject, Table, run_subject
from bench.memory_bound import COMPILED, EAGER, LIMIT, compiled, copy_of
from bench.memory_bound import headline as shared_headline

MODE = "forward"
SHAPES = {"cpu": (2**20,), "cuda": (2**20,), "quick": (2**14,)}


def main(argv: Sequence[str]) -> int:
    """Measures. Returns 1 if a row fails, or our error is more than twice that of plain torch in the same dtype."""
    description = (__doc__ or "").split("\n")[0]
    return run_subject(Subject("group_advantages", description, "N", SHAPES, tables, headline, rounds=50), argv)


def tables(device: torch.device) -> list[Table]:
    return [
        Table(
            mode=MODE,
            implementations=implementations(device),
            plain=EAGER,
            inputs=lambda shape, device, seed=0: RewardInputs.random(*shape, device, seed),
            oracle=oracle,
            oracle_shape=(1024,),
            limit=LIMIT,
            limit_work=lambda inputs: copy_of(8 * len(inputs.rewards), inputs.rewards.device),
            rotated_bytes=num_bytes,
        )
    ]


def implementations(device: torch.device) -> list[Implementation]:
    ours = [
        Implementation(name + how, within(block, named(function)), why)
        for name, why, block in backends(device)
        for how, function in (("", our_equal_groups), (", as ragged groups", our_ragged_groups))
    ]
    why_not = "" if device.type == "cuda" else "needs CUDA"
    return [
        *ours,
        Implementation(EAGER, named(eager_advantages)),
        Implementation(COMPILED, named(compiled(eager_advantages)), why_not),
    ]


def named(function: Callable[[RewardInputs], Tensor]) -> Callable[[RewardInputs], Outcome]:
    return lambda inputs: {"advantages": function(inputs)}


def our_equal_groups(inputs: RewardInputs) -> Tensor:
    return group_advantages(inputs.rewards, GROUP_SIZE)


def our_ragged_groups(inputs: RewardInputs) -> Tensor:
    return group_advantages(inputs.rewards, cu_groups=inputs.cu_groups)


def eager_advantages(inputs: RewardInputs) -> Tensor:
    """The advantages as trainers usually write them."""
    groups = inputs.rewards.view(-1, GROUP_SIZE)
    return ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-6)).view(-1)


def oracle(inputs: RewardInputs) -> Outcome:
    lengths = [GROUP_SIZE] * (len(inputs.rewards) // GROUP_SIZE)
    return {"advantages": reference.group_advantages(inputs.rewards.double(), lengths)}


def num_bytes(shape: Shape) -> int:
    """Each reward is read, and each advantage written."""
    return 8 * shape[0]


def headline(measured: Measured) -> Headline:
    return shared_headline(measured, MODE, num_bytes(measured.shape))
