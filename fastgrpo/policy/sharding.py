"""FSDP2: sharded master weights, gathered to compute."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from fastgrpo.models.decoder import layers_of
from fastgrpo.policy.policy import Policy


def shard(policy: Policy, mesh: DeviceMesh, dtype: torch.dtype) -> Policy:
    """Shards every layer and the root over the mesh; weights are gathered and computed with in ``dtype``.

    A policy that is still on the CPU comes to the mesh's device layer by layer: no device ever holds it whole. One all
    on the meta device, which has shapes alone, gets memory that nobody has filled.
    Gradients are summed over ranks, never averaged: the loss is already divided by the tokens of the whole update.
    """
    axes = mesh if mesh.shape[0] > 1 else mesh["shard"]
    precision = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.promote_types(dtype, torch.float32))
    layers: list[nn.Module] = list(layers_of(policy.model))
    unfilled = all(p.is_meta for p in policy.parameters())
    for module in (*layers, policy):
        if unfilled:
            module.to_empty(device=mesh.device_type)
            if module is policy:
                policy.model.tie_weights()  # each name got memory of its own
        else:
            module.to(mesh.device_type)
        sharded = fully_shard(module, mesh=axes, mp_policy=precision)
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)
    register_fsdp_forward_method(policy, "own_logprobs")
    return policy


def accumulate(policy: Policy, is_last: bool, reduce_each: bool) -> None:
    """Tells FSDP whether the coming backward pass is the last of an update, which reduces gradients over ranks and lets
    gathered weights go. With ``reduce_each`` those before it do so too: the whole of either would not fit."""
    assert isinstance(policy, FSDPModule)
    policy.set_requires_gradient_sync(is_last or reduce_each)
    policy.set_reshard_after_backward(is_last or reduce_each)


def reshard(policy: Policy) -> None:
    """Frees gathered weights that no backward pass will free, and that the next update would leave stale."""
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def full_weights(policy: Policy) -> Iterator[tuple[str, Tensor]]:
    """Every weight by its checkpoint name, gathered one at a time. All ranks must take part."""
    for name, parameter in policy.model.named_parameters():
        value = parameter.data
        yield name, value.full_tensor() if isinstance(value, DTensor) else value
