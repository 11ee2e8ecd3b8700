"""The primitives in plain torch, for CPU tensors where the native library was not built."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .objective import LOG_RATIO_BOUND, METRICS, PROBABILITY_FLOOR, Objective
from .primitives import (
    DecodeStep,
    ExponentialSums,
    LogitTransform,
    RowStats,
    TokenFields,
    TokenGradient,
    statistics_dtype,
)


def row_stats(logits: Tensor, target_ids: Tensor, transform: LogitTransform, entropy: bool) -> RowStats:
    scaled, _ = _transformed(logits, transform)
    lse = torch.logsumexp(scaled, dim=-1)
    logprobs = scaled.gather(1, target_ids[:, None]).squeeze(1) - lse
    if not entropy:
        return RowStats(logprobs, lse, None)
    log_p = scaled.sub_(lse[:, None]) if scaled is not logits else scaled - lse[:, None]
    p = log_p.exp()
    return RowStats(logprobs, lse, -_finite(log_p).mul_(p).sum(-1))


def row_gradient(
    logits: Tensor,
    target_ids: Tensor,
    transform: LogitTransform,
    stats: RowStats,
    grad_logprobs: Tensor,
    grad_entropy: Tensor | None,
    out: Tensor,
) -> None:
    scaled, slope = _transformed(logits, transform)
    # d logprob / d logit_j = [j = target] - p_j;  d entropy / d logit_j = -p_j (log p_j + entropy)
    log_p = scaled.sub_(stats.lse[:, None]) if scaled is not logits or out is logits else scaled - stats.lse[:, None]
    target_gradient = -torch.expm1(stats.logprobs) * grad_logprobs  # 1 - p without cancellation
    if grad_entropy is None:
        grad = log_p.exp_().mul_(-grad_logprobs[:, None])
    else:
        assert stats.entropy is not None
        p = log_p.exp()
        inner = _finite(log_p).add_(stats.entropy[:, None]).mul_(grad_entropy[:, None])
        grad = inner.add_(grad_logprobs[:, None]).mul_(p).neg_()
        target_gradient -= stats.logprobs.exp() * (stats.logprobs + stats.entropy) * grad_entropy
    grad.scatter_(1, target_ids[:, None], target_gradient[:, None])
    grad.mul_(slope)
    unused = grad_logprobs == 0 if grad_entropy is None else (grad_logprobs == 0) & (grad_entropy == 0)
    grad.masked_fill_(unused[:, None], 0.0)  # whatever their logits are
    if out.data_ptr() != grad.data_ptr():
        out.copy_(grad)


def exponentials(
    logits: Tensor,
    first: int,
    target_ids: Tensor,
    transform: LogitTransform,
    offsets: Tensor,
    sums: ExponentialSums,
    out: Tensor,
) -> None:
    x, _ = _transformed(logits, transform)
    x = x.sub_(offsets[:, None]) if x is not logits or out is logits else x - offsets[:, None]
    column = target_ids - first
    here = (column >= 0) & (column < logits.shape[1])
    of_target = x.gather(1, column.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
    sums.target.copy_(torch.where(here, of_target.double(), sums.target))
    e = x.exp() if sums.weighted is not None else x.exp_()
    sums.total.add_(e.sum(1, dtype=torch.float64))
    if sums.weighted is not None:
        sums.weighted.add_((_finite(x).double() * e).sum(1))
    if out.data_ptr() != e.data_ptr():
        out.copy_(e)


def _finite(log_p: Tensor) -> Tensor:
    """Sets log 0 to 0 in place, since 0 log 0 is 0; NaN stays."""
    return log_p.nan_to_num_(nan=math.nan, neginf=0.0)


def _transformed(logits: Tensor, transform: LogitTransform) -> tuple[Tensor, Tensor | float]:
    """The logits that the softmax sees, and their derivative to the bare ones, which stay as they are."""
    temperature = transform.temperature[:, None] if isinstance(transform.temperature, Tensor) else transform.temperature
    logits = logits.to(statistics_dtype(logits.dtype))
    slope: Tensor | float = 1.0 / temperature
    if transform.softcap:
        tanh = torch.tanh(logits / transform.softcap)
        logits, slope = transform.softcap * tanh, (1 - tanh.square()) / temperature
    if isinstance(temperature, Tensor) or temperature != 1.0:
        logits = logits / temperature
    return logits, slope


def token_objective(
    logprobs: Tensor, entropy: Tensor | None, fields: TokenFields, num_loss_tokens: Tensor, objective: Objective
) -> TokenGradient:
    mask = fields.response_mask
    mask = torch.ones_like(logprobs, dtype=torch.bool) if mask is None else mask

    def masked(values: Tensor | None, default: Tensor) -> Tensor:
        return default if values is None else torch.where(mask, values, 0.0)

    logprobs = masked(logprobs, logprobs)
    old_logprobs = masked(fields.old_logprobs, logprobs)
    advantages = masked(fields.advantages, logprobs)
    weights = masked(fields.token_weights, mask.to(logprobs.dtype)) / num_loss_tokens
    entropy = masked(entropy, torch.zeros_like(logprobs))

    def shared(values: Tensor, whether: bool) -> Tensor:
        """The mean of each response instead of its tokens' own values, if ``whether``."""
        return _response_means(values, mask, fields.cu_seqlens) if whether else values

    own, of_response = logprobs - old_logprobs, objective.ratio != "token"
    log_ratio = shared(_pessimistic(own, advantages, objective), of_response)
    bounded = _surrogate(log_ratio, own, logprobs, old_logprobs, advantages, objective)
    rollout_log_ratio = old_logprobs - masked(fields.rollout_logprobs, old_logprobs)
    correction, corrected = _correction(shared(rollout_log_ratio, objective.correction == "sequence_mask"), objective)
    # Each token moves the mean of its response by one over the length.
    through_ratio = shared(-correction * bounded.slope * weights, of_response)
    if objective.ratio == "geometric_mean":
        through_ratio = torch.where(bounded.below | bounded.above, 0.0, through_ratio)  # a clipped one moves no mean
    kl, kl_slope = torch.zeros_like(logprobs), torch.zeros_like(logprobs)
    if fields.ref_logprobs is not None:
        kl, kl_slope = _divergence(logprobs - masked(fields.ref_logprobs, logprobs), objective)

    loss = weights * (objective.kl_coef * kl - correction * bounded.surrogate - objective.entropy_coef * entropy)
    grad_logprobs = through_ratio + weights * (objective.kl_coef * kl_slope - correction * bounded.direct)
    ratio = torch.where(mask, _bounded_exp(log_ratio), 0.0)
    summed = (
        mask,
        bounded.below,
        bounded.above,
        bounded.far,
        ratio,
        old_logprobs - logprobs,
        kl,
        entropy,
        correction,
        corrected,
    )
    metrics = torch.stack([torch.where(mask, values, 0.0).double().sum() for values in summed])
    assert len(metrics) == len(METRICS)
    return TokenGradient(
        loss=loss.double().sum().to(loss.dtype),
        grad_logprobs=torch.where(mask, grad_logprobs, 0.0),
        grad_entropy=-objective.entropy_coef * weights if objective.entropy_coef else None,
        ratio=ratio,
        metrics=metrics,
    )


def _bounded_exp(log_ratio: Tensor) -> Tensor:
    return log_ratio.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()


class _Bounded(NamedTuple):
    """The surrogate, its derivatives, and where which bound was met."""

    surrogate: Tensor  # [T], as all that follow
    slope: Tensor  # to the log-ratio
    direct: Tensor  # to the logprob, the ratio held
    below: Tensor
    above: Tensor
    far: Tensor


def _surrogate(
    log_ratio: Tensor,  # [T], as all that follow
    own: Tensor,  # of the token where log_ratio is its response's
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    objective: Objective,
) -> _Bounded:
    ratio = _bounded_exp(log_ratio)
    if objective.ratio == "geometric_mean":
        return _geometric_mean(ratio, log_ratio, own, advantages, objective)
    if objective.surrogate == "clipped":
        return _clipped(ratio, log_ratio, advantages, objective)
    if objective.surrogate == "sapo":
        return _sapo(ratio, log_ratio, advantages, objective)
    if objective.surrogate == "cispo":
        return _cispo(ratio, logprobs, advantages, objective)
    return _dppo(ratio, logprobs, old_logprobs, advantages, objective)


def _clipped(ratio: Tensor, log_ratio: Tensor, advantages: Tensor, objective: Objective) -> _Bounded:
    high, low = 1 + objective.clip_high, 1 - objective.clip_low
    clipped, zero = ratio.clamp(low, high), torch.zeros_like(ratio)
    below, above, far = (advantages < 0) & (ratio < low), (advantages > 0) & (ratio > high), zero.bool()
    surrogate = torch.minimum(ratio * advantages, clipped * advantages)
    if objective.dual_clip:
        far = (advantages < 0) & (ratio > objective.dual_clip)
        floored = torch.maximum(surrogate, objective.dual_clip * advantages)
        surrogate = torch.where(advantages < 0, floored, surrogate)
    flat = below | above | far | (log_ratio.abs() > LOG_RATIO_BOUND)
    return _Bounded(surrogate, torch.where(flat, 0.0, ratio * advantages), zero, below, above, far)


def _cispo(ratio: Tensor, logprobs: Tensor, advantages: Tensor, objective: Objective) -> _Bounded:
    high, low, zero = 1 + objective.clip_high, 1 - objective.clip_low, torch.zeros_like(ratio)
    direct, signed = ratio.clamp(low, high) * advantages, advantages != 0
    return _Bounded(direct * logprobs, zero, direct, signed & (ratio < low), signed & (ratio > high), zero.bool())


def _sapo(ratio: Tensor, log_ratio: Tensor, advantages: Tensor, objective: Objective) -> _Bounded:
    tau = torch.full_like(ratio, objective.sapo_positive).where(advantages > 0, objective.sapo_negative)
    distance, zero = tau * (ratio - 1), torch.zeros_like(ratio)
    decay = (-distance.abs()).exp()
    sigmoid = torch.where(distance < 0, decay, 1.0) / (1 + decay)
    gate = 4 * decay / (1 + decay).square()  # 4 s (1 - s) without cancellation: 1 where the ratio is
    slope = torch.where(log_ratio.abs() > LOG_RATIO_BOUND, 0.0, gate * ratio * advantages)
    closing = (advantages != 0) & (gate < 0.5)
    surrogate = 4 / tau * sigmoid * advantages
    return _Bounded(surrogate, slope, zero, closing & (distance < 0), closing & (distance > 0), zero.bool())


def _dppo(ratio: Tensor, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, objective: Objective) -> _Bounded:
    p, old, zero = logprobs.exp(), old_logprobs.exp(), torch.zeros_like(ratio)
    divergence = (p - old).abs()
    if objective.surrogate == "dppo_kl":
        # Of the others: 1 - p, which rounding can make negative.
        others, old_others = (torch.expm1(x).neg().clamp(min=0) for x in (logprobs, old_logprobs))
        odds = (old_others + PROBABILITY_FLOOR).log() - (others + PROBABILITY_FLOOR).log()
        divergence = old * (old_logprobs - logprobs) + old_others * odds
    below = (advantages < 0) & (p < old) & (divergence > objective.clip_low)
    above = (advantages > 0) & (p > old) & (divergence > objective.clip_high)
    far = zero.bool()
    if objective.dual_clip:
        far = (advantages != 0) & (ratio > objective.dual_clip) & ~below & ~above
        ratio = ratio.clamp(max=objective.dual_clip)
    direct = torch.where(below | above, 0.0, ratio * advantages)
    return _Bounded(torch.where(below | above, 0.0, direct * logprobs), zero, direct, below, above, far)


def _geometric_mean(
    ratio: Tensor, log_ratio: Tensor, own: Tensor, advantages: Tensor, objective: Objective
) -> _Bounded:
    surrogate, zero = ratio * advantages, torch.zeros_like(ratio)
    slope = torch.where(log_ratio.abs() > LOG_RATIO_BOUND, 0.0, surrogate)
    return _Bounded(surrogate, slope, zero, *_beyond(own, advantages, objective), zero.bool())


def _pessimistic(log_ratio: Tensor, advantages: Tensor, objective: Objective) -> Tensor:
    """The log-ratios that enter a response's mean: GMPO's are clipped before."""
    if objective.ratio != "geometric_mean":
        return log_ratio
    below, above = _beyond(log_ratio, advantages, objective)
    return torch.where(below, -objective.clip_low, torch.where(above, objective.clip_high, log_ratio))


def _beyond(log_ratio: Tensor, advantages: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
    """Where GMPO clips a log-ratio below, and above."""
    return (advantages < 0) & (log_ratio < -objective.clip_low), (advantages > 0) & (log_ratio > objective.clip_high)


def _correction(log_ratio: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
    """The weight that corrects for the sampler, and where it was cut or set to 0."""
    if objective.correction == "none":
        return torch.ones_like(log_ratio), torch.zeros_like(log_ratio)
    ratio = _bounded_exp(log_ratio)
    above = ratio > objective.correction_high
    if objective.correction == "truncate":
        return ratio.clamp(max=objective.correction_high), above
    outside = above | (ratio < objective.correction_low)
    kept = ratio if objective.correction == "icepop" else torch.where(ratio.isnan(), ratio, 1.0)  # NaN stays
    return torch.where(outside, 0.0, kept), outside


def _divergence(log_ratio: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
    """The estimator of the divergence from the reference, and its derivative to the logprob."""
    bounded = log_ratio.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    if objective.kl == "k1":
        kl, slope = bounded, torch.ones_like(bounded)
    elif objective.kl == "k2":
        kl, slope = bounded.square() / 2, bounded
    else:
        excess = torch.expm1(-bounded)
        kl, slope = excess + bounded, -excess
    flat = bounded != log_ratio
    if objective.kl_cap:
        flat = flat | (kl.abs() > objective.kl_cap)
        kl = kl.clamp(-objective.kl_cap, objective.kl_cap)
    return kl, torch.where(flat, 0.0, slope)


def _response_means(values: Tensor, mask: Tensor, cu_seqlens: Tensor | None) -> Tensor:  # [T] -> [T]
    """For every token the mean over its response, computed without a host synchronisation."""
    assert cu_seqlens is not None
    positions = torch.arange(len(mask), device=mask.device)
    response = torch.searchsorted(cu_seqlens[1:], positions, right=True)  # [T] of each token
    zeros = torch.zeros(len(cu_seqlens) - 1, dtype=torch.float64, device=mask.device)
    lengths = zeros.index_add(0, response, mask.double()).clamp(min=1)  # [S]
    sums = zeros.index_add(0, response, torch.where(mask, values, 0.0).double())
    return (sums / lengths).to(values.dtype)[response]


def group_advantages(
    rewards: Tensor, cu_groups: Tensor | None, group_size: int, leave_one_out: bool, scale: bool, eps: float
) -> Tensor:
    if cu_groups is None:
        cu_groups = torch.arange(0, len(rewards) + 1, group_size, device=rewards.device)
    lengths = cu_groups.diff()
    of_reward = torch.repeat_interleave(lengths, output_size=len(rewards))  # [N] group of each
    exact, count = rewards.double(), lengths.double()

    def group_sums(values: Tensor) -> Tensor:
        return torch.zeros(len(lengths), dtype=values.dtype, device=values.device).index_add(0, of_reward, values)

    centred = exact - (group_sums(exact) / count)[of_reward]
    others = (count - 1).clamp(min=1)
    factor = count / others if leave_one_out else torch.ones_like(count)
    if scale:
        factor = factor / ((group_sums(centred.square()) / others).sqrt() + eps)
    # Each is compared with its group's first: the mean of equal numbers may differ from them by a rounding error.
    first = exact[cu_groups[:-1].clamp(max=max(len(rewards) - 1, 0))] if len(rewards) else exact
    differing = group_sums((exact != first[of_reward]).double()) if len(rewards) else count
    return torch.where(differing[of_reward] > 0, centred * factor[of_reward], 0.0).to(rewards.dtype)


def decode_attention(step: DecodeStep, scale: float, window: int | None) -> Tensor:
    query, key, value, keys, values, lengths = step
    rows = torch.arange(len(query), device=query.device)
    keys[rows, :, lengths] = key
    values[rows, :, lengths] = value
    columns = torch.arange(keys.shape[2], device=query.device)
    seen = columns <= lengths[:, None]  # [B, C]
    if window is not None:
        seen &= columns > lengths[:, None] - window
    grouped = query.unflatten(1, (keys.shape[1], -1))  # the query heads of a key/value head are its queries
    mixed = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=seen[:, None, None], scale=scale)
    return mixed.flatten(1, 2)
