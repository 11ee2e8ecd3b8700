"""Responses to packed micro-batches, balanced over ranks. The only place where tokens are shifted."""

import heapq
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch

from fastgrpo.types import PackedBatch, Sequence


@dataclass(frozen=True, slots=True)
class SequenceCost:
    """Forward FLOPs of a sequence of n tokens: ``per_token * n + per_token_pair * n**2``."""

    per_token: float
    per_token_pair: float

    @classmethod
    def of_transformer(cls, num_layers: int, d_model: int, d_feed_forward: int, d_key_value: int) -> "SequenceCost":
        """Two FLOPs a weight and token, and for causal attention half the token pairs in both of its products."""
        weights = num_layers * (2 * d_model * d_model + 2 * d_model * d_key_value + 3 * d_model * d_feed_forward)
        return cls(per_token=2.0 * weights, per_token_pair=2.0 * num_layers * d_model)

    def flops(self, num_tokens: int) -> float:
        return self.per_token * num_tokens + self.per_token_pair * num_tokens**2


def split_updates(sequences: Seq[Sequence], updates_per_step: int) -> list[Seq[Sequence]]:
    """Equal contiguous shares, so that a group is never split: verl's mini-batches with ``shuffle=False``."""
    assert len(sequences) % updates_per_step == 0, f"{len(sequences)} sequences, {updates_per_step} updates"
    size = len(sequences) // updates_per_step
    return [sequences[i * size : (i + 1) * size] for i in range(updates_per_step)]


def plan_microbatches(
    num_tokens: Seq[int],  # [S] input tokens of each sequence
    num_ranks: int,
    tokens_per_microbatch: int,
    cost: SequenceCost,
) -> list[list[list[int]]]:  # [rank][micro-batch] -> indices of sequences
    """The same number of micro-batches on every rank, none above the token budget, with FLOPs as equal as can be.

    Longest processing time first: the costliest sequence goes to the cheapest micro-batch that has room. Where that
    finds no room, every rank gets one micro-batch more. A micro-batch may stay empty when sequences are few.
    """
    if max(num_tokens) > tokens_per_microbatch:
        raise ValueError(
            f"a sequence of {max(num_tokens)} tokens does not fit into a micro-batch of {tokens_per_microbatch}: "
            f"raise --optimizer.tokens_per_microbatch"
        )
    order = sorted(range(len(num_tokens)), key=lambda i: (-num_tokens[i], i))
    per_rank = -(-sum(num_tokens) // (tokens_per_microbatch * num_ranks))
    while (bins := _fill(order, num_tokens, per_rank * num_ranks, tokens_per_microbatch, cost)) is None:
        per_rank += 1
    # Costliest micro-batches first, dealt back and forth, so that the sums over ranks are near each other too.
    bins.sort(key=lambda b: -sum(cost.flops(num_tokens[i]) for i in b))
    ranks: list[list[list[int]]] = [[] for _ in range(num_ranks)]
    for k, sequences in enumerate(bins):
        turn, place = divmod(k, num_ranks)
        ranks[place if turn % 2 == 0 else num_ranks - 1 - place].append(sorted(sequences))
    return ranks


def _fill(
    order: Seq[int], num_tokens: Seq[int], num_bins: int, room: int, cost: SequenceCost
) -> list[list[int]] | None:
    cheapest = [(0.0, 0, b) for b in range(num_bins)]  # FLOPs, tokens, micro-batch
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    for i in order:
        full = []
        while cheapest and cheapest[0][1] + num_tokens[i] > room:
            full.append(heapq.heappop(cheapest))
        if not cheapest:
            return None
        flops, tokens, b = heapq.heappop(cheapest)
        bins[b].append(i)
        heapq.heappush(cheapest, (flops + cost.flops(num_tokens[i]), tokens + num_tokens[i], b))
        for entry in full:
            heapq.heappush(cheapest, entry)
    return bins


def pack(sequences: Seq[Sequence]) -> PackedBatch:
    """Lays sequences end to end. No sequence at all gives two tokens without loss: every rank takes part in every
    collective of every micro-batch, also one that has nothing to learn from."""
    if not sequences:
        return _nothing()
    lengths = np.array([s.num_input_tokens for s in sequences])
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)])
    tokens = [np.concatenate([s.prompt_ids, s.response.response_ids]) for s in sequences]
    responses = np.array([len(s.response) for s in sequences])
    starts = np.repeat(cu_seqlens[:-1], lengths)
    positions = np.arange(cu_seqlens[-1]) - starts
    is_response = positions >= np.repeat(lengths - responses, lengths)
    rollout_logprobs = np.zeros(cu_seqlens[-1], dtype=np.float32)
    rollout_logprobs[is_response] = np.concatenate([s.response.rollout_logprobs for s in sequences])
    return PackedBatch(
        input_ids=torch.from_numpy(np.concatenate([t[:-1] for t in tokens]).astype(np.int64)),
        target_ids=torch.from_numpy(np.concatenate([t[1:] for t in tokens]).astype(np.int64)),
        position_ids=torch.from_numpy(positions),
        cu_seqlens=torch.from_numpy(cu_seqlens.astype(np.int32)),
        max_seqlen=int(lengths.max()),
        response_mask=torch.from_numpy(is_response),
        advantages=torch.from_numpy(np.repeat([s.advantage for s in sequences], lengths).astype(np.float32)),
        rollout_logprobs=torch.from_numpy(rollout_logprobs),
    )


def _nothing() -> PackedBatch:
    return PackedBatch(
        input_ids=torch.zeros(2, dtype=torch.int64),
        target_ids=torch.zeros(2, dtype=torch.int64),
        position_ids=torch.arange(2),
        cu_seqlens=torch.tensor([0, 2], dtype=torch.int32),
        max_seqlen=2,
        response_mask=torch.zeros(2, dtype=torch.bool),
        advantages=torch.zeros(2),
        rollout_logprobs=torch.zeros(2),
    )
