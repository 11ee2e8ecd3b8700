"""The choice of an update's tokens over all ranks: what is known of each response is gathered and put in one order,
`token_masks` chooses, and every rank takes what is its own."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fastgrpo.config import ObjectiveConfig
from fastgrpo.models.packed_batch import PackedBatch
from fastgrpo.policy.token_masks import TokenKey, clip_cov, covariances, kl_cov, top_entropy, uniform_noise
from fastgrpo.types import Sample


@dataclass(frozen=True, slots=True)
class ResponseStatistics:
    """What the policy made of a response before the update."""

    key: TokenKey
    advantage: float
    logprobs: np.ndarray  # [n]
    entropies: np.ndarray | None  # [n], where they are asked for


@dataclass(frozen=True, slots=True)
class Choice:
    """Which tokens of a response act, and how."""

    acts: np.ndarray  # [n] bool, whether the advantage counts
    penalties: np.ndarray  # [n] float64, weights of the sizes of log-ratios


def keys_of(batches: Sequence[Sequence[Sample]], update: Sequence[Sample]) -> list[list[TokenKey]]:
    """The key of every response of the batches, whose samples are some of the update's."""
    seen: Counter[int] = Counter()
    keys = {}
    for sample in update:
        position = sample.prompt.position
        keys[id(sample)] = (position, seen[position])
        seen[position] += 1
    return [[keys[id(sample)] for sample in batch] for batch in batches]


def statistics_of(
    keys: Sequence[TokenKey],
    batch: PackedBatch,
    known: tuple[Tensor, Tensor | None],  # logprobs [R], entropies [R]
) -> list[ResponseStatistics]:
    """Of each response of a micro-batch, on the host."""
    if not keys:
        return []
    cuts = batch.cu_responses[1:-1].tolist()
    logprobs, entropies = (None if t is None else np.split(t.double().cpu().numpy(), cuts) for t in known)
    assert logprobs is not None
    advantages = batch.advantages[batch.cu_seqlens[:-1].long()].tolist()  # alike at all tokens of a response
    return [
        ResponseStatistics(key, advantages[i], logprobs[i], None if entropies is None else entropies[i])
        for i, key in enumerate(keys)
    ]


def choose(
    everyone: Sequence[ResponseStatistics], settings: ObjectiveConfig, seed: int, step: int
) -> dict[TokenKey, Choice]:
    """The choice of every response of an update, whatever the order in which its responses come."""
    if not everyone:
        return {}
    ordered = sorted(everyone, key=lambda one: one.key)
    keys, lengths = [one.key for one in ordered], [len(one.logprobs) for one in ordered]
    acts = np.ones(sum(lengths), dtype=bool)
    penalties = np.zeros(len(acts))
    if settings.top_entropy < 1:
        entropies = [one.entropies for one in ordered if one.entropies is not None]
        acts &= top_entropy(np.concatenate(entropies), settings.top_entropy)
    if settings.clip_cov or settings.kl_cov:
        advantages = np.repeat([one.advantage for one in ordered], lengths)
        covariance = covariances(advantages, np.concatenate([one.logprobs for one in ordered]))
        if settings.clip_cov:
            noise = uniform_noise(keys, lengths, seed, step)
            acts &= ~clip_cov(covariance, noise, settings.clip_cov, settings.clip_cov_low, settings.clip_cov_high)
        else:
            penalties = settings.kl_cov_coef * kl_cov(covariance, settings.kl_cov)
    cuts = np.cumsum(lengths)[:-1]
    each = zip(np.split(acts, cuts), np.split(penalties, cuts), strict=True)
    return {key: Choice(*one) for key, one in zip(keys, each, strict=True)}


def with_choice(batch: PackedBatch, keys: Sequence[TokenKey], chosen: Mapping[TokenKey, Choice]) -> PackedBatch:
    """The micro-batch with the advantage 0 at tokens that do not act, and with the penalties of those that have one."""
    if not keys:
        return batch
    device = batch.advantages.device
    acts = torch.from_numpy(np.concatenate([chosen[key].acts for key in keys])).to(device)
    advantages = batch.advantages.index_put((batch.response_rows,), batch.at_responses(batch.advantages) * acts)
    penalties = np.concatenate([chosen[key].penalties for key in keys])
    known = torch.from_numpy(penalties).to(device) if penalties.any() else None
    return replace(batch, advantages=advantages, log_ratio_penalties=known)
