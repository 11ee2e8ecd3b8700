"""The frozen policy that a divergence is measured from."""

from dataclasses import replace

import torch

from fastgrpo.models.packed_batch import PackedBatch
from fastgrpo.policy.policy import Policy
from fastgrpo.policy.sharding import reshard


class Reference:
    """Weights sharded as the policy's are, that no optimizer knows."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        for parameter in policy.parameters():
            parameter.requires_grad_(False)

    @torch.no_grad()
    def with_ref_logprobs(self, batches: list[PackedBatch]) -> list[PackedBatch]:
        """The micro-batches with the reference's logprobs. All ranks take part, each with as many."""
        known = [replace(b, ref_logprobs=self.policy(b, entropy=False)[0]) for b in batches]
        reshard(self.policy)
        return known

    @torch.no_grad()
    def reset(self, policy: Policy) -> None:
        """Copies the policy as it is now, shard by shard."""
        for mine, theirs in zip(self.policy.parameters(), policy.parameters(), strict=True):
            mine.copy_(theirs)
