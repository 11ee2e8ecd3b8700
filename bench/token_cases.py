"""Launches of the kernels that work on tokens and on groups of rewards."""

from functools import partial
from typing import Any

import torch
from fastgrpo_kernels import Objective, group_advantages, grpo_loss, reference
from torch import Tensor

from bench.launch import Launch, Outcome, normal, present

_OBJECTIVES = {
    "plain": Objective(),
    "dual_clip": Objective(dual_clip=1.5),
    "cispo, k1": Objective(surrogate="cispo", clip_low=1.0, clip_high=0.3, kl="k1", kl_coef=0.2),
    "entropy, k2 capped": Objective(entropy_coef=0.3, kl="k2", kl_coef=0.2, kl_cap=0.02),
    "icepop, k3": Objective(correction="icepop", correction_low=0.7, correction_high=1.4, kl="k3", kl_coef=0.2),
    "truncate": Objective(correction="truncate", correction_high=1.2),
    "sequence_mask": Objective(correction="sequence_mask", correction_low=0.8, correction_high=1.25),
    "sapo": Objective(surrogate="sapo", sapo_negative=3.0),
    "dppo_tv": Objective(surrogate="dppo_tv", clip_low=0.05, clip_high=0.04),
    "dppo_kl, capped": Objective(surrogate="dppo_kl", clip_low=0.02, clip_high=0.01, dual_clip=1.5),
    "RATIO geometric_mean": Objective(ratio="geometric_mean"),
    "RATIO sequence": Objective(ratio="sequence", clip_low=0.1, clip_high=0.1),
    "RATIO sequence, everything": Objective(
        dual_clip=1.5, ratio="sequence", kl="k3", kl_coef=0.2, kl_cap=0.05, entropy_coef=0.1,
        correction="sequence_mask", correction_low=0.5, correction_high=2.0,
    ),
}  # fmt: skip
_STARTS = (0, 1, 1, 1400, 2503)  # a response of one token, an empty one, one of two blocks of 1024


def token_launches() -> list[Launch]:
    found = [
        Launch(f"tokens {name}", ("_token_objective",), partial(_loss, objective, torch.float32),
               lambda dtype, objective=objective: _loss(objective, dtype, None))
        for name, objective in _OBJECTIVES.items()
    ]  # fmt: skip
    one = partial(_loss, Objective(), num_tokens=1, bare=True)
    bare = Launch("tokens one, nothing else given", ("_token_objective",),
                  lambda device: one(torch.float32, device), lambda dtype: one(dtype, None))  # fmt: skip
    return [*found, bare]


def _loss(
    objective: Objective,
    dtype: torch.dtype,
    device: torch.device | None,  # None: by the definition
    num_tokens: int = _STARTS[-1],
    bare: bool = False,  # no mask, no old logprobs
) -> Outcome:
    """The loss of logprobs around the old ones: tokens on both sides of every bound, and none exactly on it."""

    def given(values: Tensor) -> Tensor:
        return values.to(device or "cpu", dtype)

    steps = torch.linspace(-0.9, 0.9, num_tokens)
    old, near_ref, near_rollout = (
        -2 * torch.rand(num_tokens, generator=torch.Generator().manual_seed(2)),
        *(0.3 * normal(2, num_tokens, seed=3)),
    )
    logprobs, entropy = given(old + steps).requires_grad_(), given(steps.abs()).requires_grad_()
    mask = torch.arange(num_tokens) % 7 != 3
    known: dict[str, Any] = {
        "ref_logprobs": given(old + near_ref), "rollout_logprobs": given(old + near_rollout),
        "token_weights": given(0.5 + steps.abs()), "cu_seqlens": torch.tensor(_STARTS).to(device or "cpu"),
        "response_mask": mask.to(device or "cpu"),
    }  # fmt: skip
    known = {"entropy": entropy} if bare else known | {"entropy": entropy}
    if objective.kl_coef == 0:
        known.pop("ref_logprobs", None)
    advantages, count = given(normal(num_tokens, seed=4)), max(num_tokens // 2, 1)
    olds = None if bare else given(old)
    if device is None:
        loss = reference.grpo_loss(logprobs, olds, advantages, count, objective, **known)
    else:
        known.setdefault("response_mask", None)
        loss = grpo_loss(logprobs, olds, advantages, num_loss_tokens=count, objective=objective, **known).loss
    loss.backward()
    assert logprobs.grad is not None
    return present(loss=loss, grad_logprobs=logprobs.grad, grad_entropy=entropy.grad)


# Groups.


def group_launches() -> list[Launch]:
    equal: list[tuple[str, list[int], dict[str, Any]]] = [
        ("equal 7 x 8", [8] * 7, {}),
        ("equal 3 x 5, leave one out, unscaled", [5] * 3, {"baseline": "leave_one_out", "scale": "none"}),
        ("equal 5 x 1", [1] * 5, {}),
        ("equal 1031 x 3, over the batch", [3] * 1031, {"scale": "batch"}),
    ]
    ragged: list[tuple[str, list[int], dict[str, Any]]] = [
        ("ragged 1, 0, 1500, 7", [1, 0, 1500, 7], {}),
        ("ragged 3, 1025, leave one out", [3, 1025], {"baseline": "leave_one_out"}),
    ]
    found = [_group_launch(name, "_equal_groups", lengths, options) for name, lengths, options in equal]
    found += [_group_launch(name, "_ragged_groups", lengths, options) for name, lengths, options in ragged]
    return [*found, _group_launch("equal 1 x 5003, above a block", "_ragged_groups", [5003], {})]


def _group_launch(name: str, kernel: str, lengths: list[int], options: dict[str, Any]) -> Launch:
    rewards = normal(sum(lengths), seed=sum(lengths))
    if len(lengths) > 1:
        rewards[: lengths[0]] = 0.1  # a group of equal rewards

    def ours(device: torch.device) -> Outcome:
        starts = torch.tensor([0, *lengths]).cumsum(0).to(device)
        as_groups = {"cu_groups": starts} if name.startswith("ragged") else {"group_size": lengths[0]}
        return {"advantages": group_advantages(rewards.to(device), **as_groups, **options)}

    def definition(dtype: torch.dtype) -> Outcome:
        return {"advantages": reference.group_advantages(rewards.to(dtype), lengths, **options)}

    return Launch(f"groups {name}", (kernel,), ours, definition)
