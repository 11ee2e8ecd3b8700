"""The auxiliary loss that balances experts (Switch Transformer, arXiv 2101.03961, eq. 4 to 6), over a whole update.

transformers' ``load_balancing_loss_func`` is ``E * sum over experts of share * probability``: the share of the choices
that fell on an expert, and its mean probability, over all tokens and layers. A product of two means is no sum over
micro-batches. So the shares, which have no gradient, are counted over the whole update first, with a forward pass more;
what is left is a sum over tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastgrpo.models.packed_batch import PackedBatch
from fastgrpo.models.routers import routers_of
from fastgrpo.policy.policy import Policy
from fastgrpo.policy.sharding import reshard
from fastgrpo.ranks import Ranks


class RouterLoss:
    """Of the response tokens of an update, as they are read: those whose logits the update's loss is made of."""

    def __init__(self, policy: Policy, coef: float, ranks: Ranks) -> None:
        self.policy, self.coef, self.ranks = policy, coef, ranks
        self.routers = routers_of(policy.model)

    @torch.no_grad()
    def shares(self, batches: Sequence[PackedBatch]) -> Tensor:  # [experts]
        """The share of tokens that chose each expert, in the mean over layers; they sum to the number of experts that a
        token chooses. Counted over the micro-batches of all ranks, which all take part."""
        total: Tensor | None = None
        for batch in batches:
            with self.routers.watched() as logits:
                self.policy(batch, False, _nothing)
            for rows in self._at_responses(batch, logits):
                chosen = rows.topk(self.routers.num_chosen, dim=-1).indices.flatten()
                counts = torch.bincount(chosen, minlength=rows.shape[-1]).double()
                total = counts if total is None else total + counts
        reshard(self.policy)
        assert total is not None
        counted = self.ranks.sum(total)
        return (counted * self.routers.num_chosen / counted.sum().clamp(min=1)).to(self.ranks.device)

    def of(self, batch: PackedBatch, logits: Sequence[Tensor], shares: Tensor, num_tokens: int) -> Tensor:  # []
        """A micro-batch's part of the loss of an update with so many response tokens."""
        dtype = torch.promote_types(logits[0].dtype, torch.float32)
        rows = self._at_responses(batch, logits)
        parts = [torch.softmax(one, -1, dtype=dtype).sum(0) @ shares.to(dtype) for one in rows]
        return torch.stack(parts).sum() * (self.coef * len(shares) / (len(parts) * max(1, num_tokens)))

    def _at_responses(self, batch: PackedBatch, logits: Sequence[Tensor]) -> list[Tensor]:  # each [R, experts]
        rows = self.policy.response_rows(batch)
        return [one.index_select(0, rows) for one in logits]


def _nothing(hidden: Tensor, *_: object, **__: object) -> Tensor:
    return hidden
