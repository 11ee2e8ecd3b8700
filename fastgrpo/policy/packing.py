"""From samples to packed micro-batches, balanced over ranks. The only place where tokens are shifted."""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch

from fastgrpo.models.packed_batch import PackedBatch, SharedPrompts
from fastgrpo.types import Response, Sample

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SequenceCost:
    """Forward FLOPs of a sequence of n tokens: ``per_token * n + per_token_pair * n**2``."""

    per_token: float
    per_token_pair: float

    def flops(self, num_tokens: int) -> float:
        return self.per_token * num_tokens + self.per_token_pair * num_tokens**2


def split_updates(samples: Sequence[Sample], updates_per_step: int, group_size: int) -> list[Sequence[Sample]]:
    """Contiguous shares of nearly as many whole groups: verl's mini-batches with ``shuffle=False``.

    Fewer groups than updates give fewer updates, no group none.
    """
    groups, rest = divmod(len(samples), group_size)
    assert rest == 0, f"{len(samples)} samples are no whole groups of {group_size}"
    ends = [groups * i // updates_per_step * group_size for i in range(updates_per_step + 1)]
    return [samples[start:stop] for start, stop in pairwise(ends) if start < stop]


def plan_microbatches(
    samples: Sequence[Sample],
    num_ranks: int,
    tokens_per_microbatch: int,
    cost: SequenceCost,
    *,
    share_prompts: bool = False,
) -> list[list[list[Sample]]]:  # [rank][micro-batch]
    """The same number of micro-batches on every rank, none above the token budget, with FLOPs as equal as can be.

    Longest processing time first: the costliest item goes to the cheapest micro-batch that has room; where none has,
    every rank gets one micro-batch more. An item is a sample, or with ``share_prompts`` all samples of a prompt if
    together they are small beside the budget. A micro-batch may stay empty when items are few.
    """
    longest = max((s.num_input_tokens for s in samples), default=0)
    if longest > tokens_per_microbatch:
        raise ValueError(
            f"a sequence of {longest} tokens does not fit into a micro-batch of {tokens_per_microbatch}: "
            f"raise --optimizer.tokens_per_microbatch"
        )
    items = [_Item.of(part, cost) for part in _parts(samples, tokens_per_microbatch // 4 if share_prompts else 0)]
    items.sort(key=lambda item: -item.flops)
    per_rank = max(1, -(-sum(item.num_tokens for item in items) // (tokens_per_microbatch * num_ranks)))
    bins = _fewest(lambda count: _fill(items, count * num_ranks, tokens_per_microbatch), per_rank)
    # Costliest micro-batches first, dealt back and forth, so that the sums over ranks are near each other too.
    bins.sort(key=lambda b: -sum(item.flops for item in b))
    ranks: list[list[list[Sample]]] = [[] for _ in range(num_ranks)]
    for k, chosen in enumerate(bins):
        turn, place = divmod(k, num_ranks)
        ranks[place if turn % 2 == 0 else num_ranks - 1 - place].append([s for item in chosen for s in item.samples])
    return ranks


@dataclass(frozen=True, slots=True)
class _Item:
    """Samples that stay together, of one prompt, which is computed once."""

    samples: list[Sample]
    num_tokens: int
    flops: float

    @classmethod
    def of(cls, samples: list[Sample], cost: SequenceCost) -> "_Item":
        if len(samples) == 1:  # as most are
            return cls(samples, count := samples[0].num_input_tokens, cost.flops(count))
        repeated = (len(samples) - 1) * len(samples[0].prompt.prompt_ids)
        flops = sum(cost.flops(s.num_input_tokens) for s in samples) - cost.per_token * repeated
        return cls(samples, sum(s.num_input_tokens for s in samples) - repeated, flops)


def _parts(samples: Sequence[Sample], most_tokens: int) -> list[list[Sample]]:
    """Samples by prompt where those of one prompt have at most ``most_tokens`` together, else one by one."""
    if most_tokens == 0:
        return [[sample] for sample in samples]
    by_prompt: dict[bytes, list[Sample]] = {}
    for sample in samples:
        by_prompt.setdefault(sample.prompt.prompt_ids.tobytes(), []).append(sample)
    together = [p for p in by_prompt.values() if sum(s.num_input_tokens for s in p) <= most_tokens]
    alone = [[s] for p in by_prompt.values() if sum(s.num_input_tokens for s in p) > most_tokens for s in p]
    return together + alone


def _fewest(attempt: Callable[[int], list[T] | None], fewest: int) -> list[T]:
    """What the attempt gives for the smallest number from ``fewest`` on for which it gives something; of large numbers,
    for one within 2 % of it, for an attempt takes its time. The steps between numbers double, then halve."""
    failed, step = fewest - 1, max(1, fewest // 64)
    while (found := attempt(failed + step)) is None:
        failed, step = failed + step, 2 * step
    succeeds = failed + step
    while succeeds - failed > max(1, failed // 64):
        middle = (failed + succeeds) // 2
        if (better := attempt(middle)) is None:
            failed = middle
        else:
            found, succeeds = better, middle
    return found


def _fill(items: Sequence[_Item], num_bins: int, room: int) -> list[list[_Item]] | None:
    cheapest = [(0.0, 0, b) for b in range(num_bins)]  # FLOPs, tokens, micro-batch
    bins: list[list[_Item]] = [[] for _ in range(num_bins)]
    for item in items:
        full, num_tokens = [], item.num_tokens
        while cheapest and cheapest[0][1] + num_tokens > room:
            full.append(heapq.heappop(cheapest))
        if not cheapest:
            return None
        flops, tokens, b = cheapest[0]
        bins[b].append(item)
        heapq.heapreplace(cheapest, (flops + item.flops, tokens + num_tokens, b))
        for entry in full:
            heapq.heappush(cheapest, entry)
    return bins


def pack(samples: Sequence[Sample], *, share_prompts: bool = False) -> PackedBatch:
    """Lays samples end to end. No sample at all gives two tokens without loss: every rank takes part in every
    collective of every micro-batch, also one that has nothing to learn from."""
    if not samples:
        return _nothing()
    lengths = np.array([s.num_input_tokens for s in samples])
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)])
    tokens = [np.concatenate([s.prompt.prompt_ids, s.tokens.response_ids]) for s in samples]
    responses = np.array([len(s.response) for s in samples])
    sampled = np.concatenate([_sampled(s.tokens) for s in samples])
    starts = np.repeat(cu_seqlens[:-1], lengths)
    positions = np.arange(cu_seqlens[-1]) - starts
    is_response = positions >= np.repeat(lengths - responses, lengths)
    is_response[is_response] = sampled
    rollout_logprobs = np.zeros(cu_seqlens[-1], dtype=np.float32)
    rollout_logprobs[is_response] = np.concatenate([s.tokens.rollout_logprobs for s in samples])[sampled]
    num_sampled = [s.response.num_sampled_tokens for s in samples]
    return PackedBatch(
        input_ids=torch.from_numpy(np.concatenate([t[:-1] for t in tokens]).astype(np.int64)),
        target_ids=torch.from_numpy(np.concatenate([t[1:] for t in tokens]).astype(np.int64)),
        position_ids=torch.from_numpy(positions),
        cu_seqlens=torch.from_numpy(cu_seqlens.astype(np.int32)),
        max_seqlen=int(lengths.max()),
        response_mask=torch.from_numpy(is_response),
        response_rows=torch.from_numpy(np.flatnonzero(is_response)),
        cu_responses=torch.from_numpy(np.concatenate([[0], np.cumsum(num_sampled)]).astype(np.int32)),
        advantages=torch.from_numpy(np.repeat([s.advantage for s in samples], lengths).astype(np.float32)),
        rollout_logprobs=torch.from_numpy(rollout_logprobs),
        shared=_share(samples, cu_seqlens) if share_prompts else None,
    )


def _sampled(response: Response) -> np.ndarray:  # [num_response_tokens] bool
    return np.ones(len(response), dtype=bool) if response.response_mask is None else response.response_mask


def _share(samples: Sequence[Sample], cu_seqlens: np.ndarray) -> SharedPrompts | None:
    """Every prompt keeps the tokens of its first sample; None if no prompt stands twice."""
    first: dict[bytes, int] = {}  # prompt -> where its first sample begins
    source = np.arange(cu_seqlens[-1])  # the packed token that stands for each
    for start, sample in zip(cu_seqlens.tolist(), samples, strict=False):
        length = len(sample.prompt.prompt_ids)
        origin = first.setdefault(sample.prompt.prompt_ids.tobytes(), start)
        source[start : start + length] = np.arange(origin, origin + length)
    if len(first) == len(samples):
        return None
    select, expand = np.unique(source, return_inverse=True)
    return SharedPrompts(torch.from_numpy(select), torch.from_numpy(expand))


def _nothing() -> PackedBatch:
    return PackedBatch(
        input_ids=torch.zeros(2, dtype=torch.int64),
        target_ids=torch.zeros(2, dtype=torch.int64),
        position_ids=torch.arange(2),
        cu_seqlens=torch.tensor([0, 2], dtype=torch.int32),
        max_seqlen=2,
        response_mask=torch.zeros(2, dtype=torch.bool),
        response_rows=torch.zeros(0, dtype=torch.int64),
        cu_responses=torch.zeros(2, dtype=torch.int32),
        advantages=torch.zeros(2),
        rollout_logprobs=torch.zeros(2),
    )
