"""What a plain trainer computes, in the place of the project's policy: the rest of the update stays the same."""

import torch
from torch import Tensor

from fastgrpo.attention import PackedLayout
from fastgrpo.policy.model import Policy
from fastgrpo.types import PackedBatch


class PackedLogits(Policy):
    """Packed rows, all logits at once, log_softmax in float32."""

    def forward(self, batch: PackedBatch, entropy: bool = True) -> tuple[Tensor, Tensor | None]:
        logits = self.model(
            input_ids=batch.input_ids[None],
            position_ids=batch.position_ids[None],
            use_cache=False,
            layout=PackedLayout(batch.cu_seqlens, batch.max_seqlen),
        ).logits[0]  # [T, V]
        logprobs = _logprobs(logits, batch.target_ids)[batch.response_mask]
        return logprobs, torch.zeros_like(logprobs)  # entropy would only add to its memory


class PaddedLogits(Policy):
    """One row a sequence, padded to the longest, all logits at once, log_softmax in float32."""

    def forward(self, batch: PackedBatch, entropy: bool = True) -> tuple[Tensor, Tensor | None]:
        lengths = batch.cu_seqlens.diff()
        inside = torch.arange(batch.max_seqlen, device=lengths.device) < lengths[:, None]  # [S, L]
        input_ids, target_ids = torch.zeros_like(inside, dtype=torch.int64), torch.zeros_like(inside, dtype=torch.int64)
        input_ids[inside], target_ids[inside] = batch.input_ids, batch.target_ids
        logits = self.model(input_ids=input_ids, attention_mask=inside.long(), use_cache=False).logits  # [S, L, V]
        logprobs = _logprobs(logits, target_ids)[inside][batch.response_mask]
        return logprobs, torch.zeros_like(logprobs)


def _logprobs(logits: Tensor, target_ids: Tensor) -> Tensor:
    return torch.log_softmax(logits.float(), dim=-1).gather(-1, target_ids[..., None]).squeeze(-1)
