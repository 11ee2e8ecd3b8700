"""Policies that compute as plain trainers do. They replace the project's policy, and the rest of the update stays."""

import torch
from torch import Tensor

from fastgrpo.models.layout import PackedLayout
from fastgrpo.models.packed_batch import PackedBatch
from fastgrpo.policy.policy import Policy


class PackedLogits(Policy):
    """Packed rows, all logits at once, log_softmax in float32."""

    def forward(self, batch: PackedBatch, entropy: bool = True) -> tuple[Tensor, Tensor | None]:
        logits = self.model(
            input_ids=batch.input_ids[None],
            position_ids=batch.position_ids[None],
            use_cache=False,
            layout=PackedLayout(batch.cu_seqlens, batch.max_seqlen),
        ).logits[0]  # [T, V]
        logprobs = batch.at_responses(_logprobs(logits, batch.target_ids))
        return logprobs, torch.zeros_like(logprobs)  # entropy would only add to its memory


class PaddedLogits(Policy):
    """A row for each sequence, padded to the longest, all logits at once, log_softmax in float32."""

    def forward(self, batch: PackedBatch, entropy: bool = True) -> tuple[Tensor, Tensor | None]:
        padding = PackedLayout(batch.cu_seqlens, batch.max_seqlen).padding(len(batch.input_ids))
        input_ids, target_ids = (
            ids[padding.row_of_place].view(padding.num_sequences, padding.num_columns)  # [S, L]
            for ids in (batch.input_ids, batch.target_ids)
        )
        columns = torch.arange(padding.num_columns, device=input_ids.device)
        inside = columns < batch.cu_seqlens.diff()[:, None]
        logits = self.model(input_ids=input_ids, attention_mask=inside.long(), use_cache=False).logits  # [S, L, V]
        logprobs = _logprobs(logits, target_ids).flatten()[padding.place_of_row]
        logprobs = batch.at_responses(logprobs)
        return logprobs, torch.zeros_like(logprobs)


def _logprobs(logits: Tensor, target_ids: Tensor) -> Tensor:
    return torch.log_softmax(logits.float(), dim=-1).gather(-1, target_ids[..., None]).squeeze(-1)
