"""The policy: a transformers causal LM whose forward pass ends in logprobs, not in logits."""

from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

import numpy as np
import torch
from fastgrpo_kernels import linear_logprobs
from torch import Tensor, nn
from transformers import PreTrainedModel

from fastgrpo.config import ModelConfig
from fastgrpo.models.attention import IMPLEMENTATIONS, can_share_prompts
from fastgrpo.models.decoder import attention_width, decoder_of, freeze_all_but_text, layers_of, weights_a_token_reads
from fastgrpo.models.head import measure_head
from fastgrpo.models.layout import PackedLayout, Padding, hold_layout, takes_layout
from fastgrpo.models.load import attention_of, compute_dtype, load_causal_lm, master_dtype
from fastgrpo.models.own_pass import own_logprobs
from fastgrpo.models.packed_batch import PackedBatch
from fastgrpo.policy.activations import recompute_first
from fastgrpo.policy.packing import SequenceCost

T = TypeVar("T", covariant=True)


class HeadOp(Protocol[T]):
    """An operation of the LM head, as `fastgrpo_kernels.linear_logprobs` is one."""

    def __call__(
        self,
        hidden: Tensor,  # [R, D]
        weight: Tensor,  # [V, D]
        target_ids: Tensor,  # [R] int64
        /,
        *,
        bias: Tensor | None,  # [V]
        temperature: float,
        softcap: float | None,
        entropy: bool,
        chunk_tokens: int | None,
    ) -> T: ...


class Policy(nn.Module):
    """Root module of the trained weights.

    The LM head is applied inside this forward, in chunks and to response rows alone: no ``[T, V]`` tensor exists, and
    under FSDP2 the head's weight is gathered only here. ``head_chunk_tokens`` 0 leaves the chunk to the op.
    """

    def __init__(self, model: PreTrainedModel, temperature: float, head_chunk_tokens: int) -> None:
        super().__init__()
        self.model = model
        self.head = measure_head(model)
        self.held = hold_layout(model)
        self.temperature = temperature
        self.head_chunk_tokens = head_chunk_tokens

    @property
    def can_share_prompts(self) -> bool:
        return can_share_prompts(decoder_of(self.model).config._attn_implementation)

    def own_logprobs(self, prompt_ids: np.ndarray, response_ids: np.ndarray) -> Tensor:  # [num_response_tokens]
        """What the model's own forward pass gives for one sequence; `sharding` lets it meet whole weights too."""
        return own_logprobs(self.model, prompt_ids, response_ids, self.temperature)

    @overload
    def forward(self, batch: PackedBatch, entropy: bool = True) -> tuple[Tensor, Tensor | None]: ...

    @overload
    def forward(self, batch: PackedBatch, entropy: bool, op: HeadOp[T]) -> T: ...

    def forward(self, batch: PackedBatch, entropy: bool = True, op: HeadOp[Any] = linear_logprobs) -> Any:
        """What the op makes of the R response tokens of the batch, in order: by default float32 logprobs [R], and the
        entropy [R] or None.

        It runs in here because here the head's weight is whole.
        """
        hidden = self._packed(batch) if self.can_share_prompts else self._one_row_each(batch)
        head = self.model.get_output_embeddings()
        return op(
            hidden.index_select(0, self.response_rows(batch)),
            head.weight,
            batch.at_responses(batch.target_ids),
            **self.head.options(head.bias, self.temperature),
            entropy=entropy,
            chunk_tokens=self.head_chunk_tokens or None,
        )

    def response_rows(self, batch: PackedBatch) -> Tensor:  # [R] int64
        """Where the response tokens are among the rows that the layers compute."""
        if not self.can_share_prompts:
            return _padding_of(batch).place_of_row[batch.response_rows]
        return batch.response_rows if batch.shared is None else batch.shared.expand[batch.response_rows]

    def _packed(self, batch: PackedBatch) -> Tensor:  # [U, D]
        """The hidden states of sequences that lie end to end under attention of ours."""
        input_ids, position_ids = batch.input_ids, batch.position_ids
        if batch.shared is not None:
            input_ids, position_ids = input_ids[batch.shared.select], position_ids[batch.shared.select]
        layout = PackedLayout(batch.cu_seqlens, batch.max_seqlen, batch.shared)
        if decoder_of(self.model).config._attn_implementation == IMPLEMENTATIONS["padded"]:
            layout.padding(len(input_ids))
        self.held.layout = layout
        decoder = decoder_of(self.model)
        named = {"layout": layout} if takes_layout(decoder) else {}
        ids, positions = input_ids[None], position_ids[None]
        return decoder(input_ids=ids, position_ids=positions, use_cache=False, **named).last_hidden_state[0]

    def _one_row_each(self, batch: PackedBatch) -> Tensor:  # [S * L, D]
        """The same of sequences in padded rows of their own, under the model's own attention, masks and positions.

        What fills a row is behind its sequence, where no causal model looks: also states of layers that are not
        attention are right.
        """
        padding = _padding_of(batch)
        rows = batch.input_ids[padding.row_of_place].unflatten(0, (padding.num_sequences, padding.num_columns))
        return decoder_of(self.model)(input_ids=rows, use_cache=False).last_hidden_state.flatten(0, 1)

    if TYPE_CHECKING:
        __call__ = forward  # as nn.Module calls it, with its types


def _padding_of(batch: PackedBatch) -> Padding:
    return Padding.of(batch.cu_seqlens, batch.max_seqlen, len(batch.input_ids), None)


def load_policy(config: ModelConfig, temperature: float, device: torch.device) -> Policy:
    """A policy for this device that is still on the CPU: `shard` brings each rank its part."""
    attention = attention_of(config, device, compute_dtype(config, device))
    model = load_causal_lm(config, device, master_dtype(config, device), attention, place=False)
    return as_policy(model, config, temperature)


def as_policy(
    model: PreTrainedModel, config: ModelConfig, temperature: float, policy_class: type[Policy] = Policy
) -> Policy:
    """A loaded model as a policy, with this configuration's checkpointing, compilation and head."""
    freeze_all_but_text(model)
    if config.activation_checkpointing is True:  # auto: when it is known what is free
        recompute_first(model, len(layers_of(model)))
    if config.compile:
        for layer in layers_of(model):  # they share their code: what the first compiles, all run
            layer.forward = torch.compile(layer.forward, dynamic=True)
    return policy_class(model, temperature, config.head_chunk_tokens)


def sequence_cost(model: PreTrainedModel) -> SequenceCost:
    """FLOPs by sequence length of a decoder: two a weight and token, of experts those that a token reads; half of the
    token pairs in each attention product."""
    return SequenceCost(per_token=2.0 * weights_a_token_reads(model), per_token_pair=1.0 * attention_width(model))
