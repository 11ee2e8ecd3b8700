"""The token objective: the clipped ratio and all else of objective.py's formula, and its derivative to the logprob."""

from typing import get_args

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..objective import METRICS, PROBABILITY_FLOOR, Correction, Kl, Objective, Ratio, Surrogate
from ..primitives import TokenFields, TokenGradient
from .rows import expm1, require_single

_BLOCK = 1024
_NUM_SUMS = tl.constexpr(1 + len(METRICS))
_PADDED_SUMS = tl.constexpr(triton.next_power_of_2(1 + len(METRICS)))
_CORRECTIONS = {name: i for i, name in enumerate(get_args(Correction))}
_KLS = {name: i for i, name in enumerate(get_args(Kl))}
_NONE, _TRUNCATE = tl.constexpr(_CORRECTIONS["none"]), tl.constexpr(_CORRECTIONS["truncate"])
_ICEPOP, _SEQUENCE_MASK = tl.constexpr(_CORRECTIONS["icepop"]), tl.constexpr(_CORRECTIONS["sequence_mask"])
_SURROGATES = {name: i for i, name in enumerate(get_args(Surrogate))}
_RATIOS = {name: i for i, name in enumerate(get_args(Ratio))}
_CISPO, _SAPO = tl.constexpr(_SURROGATES["cispo"]), tl.constexpr(_SURROGATES["sapo"])
_DPPO_TV, _DPPO_KL = tl.constexpr(_SURROGATES["dppo_tv"]), tl.constexpr(_SURROGATES["dppo_kl"])
_TOKEN, _GEOMETRIC_MEAN = tl.constexpr(_RATIOS["token"]), tl.constexpr(_RATIOS["geometric_mean"])
_FLOOR = tl.constexpr(PROBABILITY_FLOOR)
_NO_KL, _K1, _K2 = tl.constexpr(-1), tl.constexpr(_KLS["k1"]), tl.constexpr(_KLS["k2"])


def token_objective(
    logprobs: Tensor, entropy: Tensor | None, fields: TokenFields, num_loss_tokens: Tensor, objective: Objective
) -> TokenGradient:
    require_single(logprobs)
    num_tokens, cu_seqlens = len(logprobs), None
    programs, new = triton.cdiv(num_tokens, _BLOCK), torch.empty_like
    if objective.needs_whole_responses:
        cu_seqlens = fields.cu_seqlens
        assert cu_seqlens is not None
        # Tokens that no response claims would stay as they are.
        programs, new = len(cu_seqlens) - 1, torch.zeros_like
    grad_logprobs, ratio = new(logprobs), new(logprobs)
    grad_entropy = new(ratio) if objective.entropy_coef else None
    partial_sums = ratio.new_empty(programs, _NUM_SUMS.value)
    if programs:
        mask = fields.response_mask
        _token_objective[(programs,)](
            logprobs, fields.old_logprobs, fields.advantages, None if mask is None else mask.view(torch.uint8),
            fields.ref_logprobs, fields.rollout_logprobs, fields.token_weights, entropy, cu_seqlens, num_loss_tokens,
            grad_logprobs, grad_entropy, ratio, partial_sums, num_tokens, objective.clip_low, objective.clip_high,
            objective.dual_clip, objective.sapo_positive, objective.sapo_negative, objective.kl_coef, objective.kl_cap,
            objective.entropy_coef, objective.correction_low, objective.correction_high,
            SURROGATE=_SURROGATES[objective.surrogate], DUAL=objective.dual_clip != 0,
            KL=_KLS[objective.kl] if fields.ref_logprobs is not None else _NO_KL.value, CAP=objective.kl_cap != 0,
            CORRECTION=_CORRECTIONS[objective.correction], BY_RESPONSE=objective.needs_whole_responses,
            RATIO=_RATIOS[objective.ratio], BLOCK=_BLOCK,
        )  # fmt: skip
    sums = partial_sums.sum(0, dtype=torch.float64)
    return TokenGradient(sums[0].float(), grad_logprobs, grad_entropy, ratio, sums[1:].clone())


@triton.jit
def _read(pointer, at, inside, whole, WIDE: tl.constexpr):
    """The values of a block of places; where all of them are inside, and the first is aligned, by 128 bits."""
    if WIDE:
        if whole:
            values = tl.load(pointer + at)
        else:
            values = tl.load(pointer + at, mask=inside, other=0)
    else:
        values = tl.load(pointer + at, mask=inside, other=0)
    return values


@triton.jit
def _write(pointer, at, values, inside, whole, WIDE: tl.constexpr):
    if WIDE:
        if whole:
            tl.store(pointer + at, values)
        else:
            tl.store(pointer + at, values, mask=inside)
    else:
        tl.store(pointer + at, values, mask=inside)


@triton.jit
def _counts(response_mask, at, inside, whole=False, WIDE: tl.constexpr = False):
    """Whether a token stands at each place, and the policy sampled it."""
    counted = inside
    if response_mask is not None:
        counted = counted & (_read(response_mask, at, inside, whole, WIDE) != 0)
    return counted


@triton.jit
def _field(pointer, at, inside, counted, default, whole=False, WIDE: tl.constexpr = False):
    """The field of the tokens that count, 0 for the others; `default` where there is no such field."""
    if pointer is not None:
        return tl.where(counted, _read(pointer, at, inside, whole, WIDE), 0.0)
    return default


@triton.jit
def _bounded(log_ratio):
    """The log-ratio within +-20; NaN stays: a broken model must not look like a fine one."""
    return tl.where(log_ratio > 20.0, 20.0, tl.where(log_ratio < -20.0, -20.0, log_ratio))


@triton.jit
def _bounded_exp(log_ratio):
    return tl.exp(_bounded(log_ratio))


@triton.jit
def _surrogate(
    ratio,
    log_ratio,
    own,  # the token's log-ratio, where log_ratio is its response's
    logprobs,
    old_logprobs,
    advantages,
    clip_low,
    clip_high,
    dual_clip,
    sapo_positive,
    sapo_negative,
    SURROGATE: tl.constexpr,
    RATIO: tl.constexpr,
    DUAL: tl.constexpr,
):
    """The surrogate, its derivatives to the log-ratio and to the logprob directly, and where which bound was met."""
    if RATIO == _GEOMETRIC_MEAN:
        return _geometric_mean(ratio, log_ratio, own, advantages, clip_low, clip_high)
    elif SURROGATE == _SAPO:
        return _sapo(ratio, log_ratio, advantages, sapo_positive, sapo_negative)
    elif SURROGATE >= _DPPO_TV:  # the last two
        return _dppo(ratio, logprobs, old_logprobs, advantages, clip_low, clip_high, dual_clip, SURROGATE, DUAL)
    else:
        return _clipped(ratio, log_ratio, logprobs, advantages, clip_low, clip_high, dual_clip, SURROGATE, DUAL)


@triton.jit
def _clipped(
    ratio, log_ratio, logprobs, advantages, clip_low, clip_high, dual_clip, SURROGATE: tl.constexpr, DUAL: tl.constexpr
):
    low, high = 1.0 - clip_low, 1.0 + clip_high
    clipped = tl.where(ratio > high, high, tl.where(ratio < low, low, ratio))  # NaN stays
    zero = ratio * 0.0
    if SURROGATE == _CISPO:
        below = (advantages != 0) & (ratio < low)
        above = (advantages != 0) & (ratio > high)
        far = below & above
        direct = clipped * advantages
        surrogate = direct * logprobs
        slope = zero
    else:
        below = (advantages < 0) & (ratio < low)
        above = (advantages > 0) & (ratio > high)
        far = below & above
        surrogate = tl.minimum(ratio * advantages, clipped * advantages)
        if DUAL:
            far = (advantages < 0) & (ratio > dual_clip)
            surrogate = tl.where(advantages < 0, tl.maximum(surrogate, dual_clip * advantages), surrogate)
        flat = below | above | far | (tl.abs(log_ratio) > 20.0)
        slope = tl.where(flat, 0.0, ratio * advantages)
        direct = zero
    return surrogate, slope, direct, below, above, far


@triton.jit
def _sapo(ratio, log_ratio, advantages, sapo_positive, sapo_negative):
    tau = tl.where(advantages > 0, sapo_positive, sapo_negative)
    distance = tau * (ratio - 1.0)
    decay = tl.exp(-tl.abs(distance))
    sigmoid = tl.where(distance < 0, decay, 1.0) / (1.0 + decay)
    gate = 4.0 * decay / ((1.0 + decay) * (1.0 + decay))  # 4 s (1 - s) without cancellation
    slope = tl.where(tl.abs(log_ratio) > 20.0, 0.0, gate * ratio * advantages)
    closing = (advantages != 0) & (gate < 0.5)
    below = closing & (distance < 0)
    above = closing & (distance > 0)
    return 4.0 / tau * sigmoid * advantages, slope, ratio * 0.0, below, above, below & above


@triton.jit
def _dppo(
    ratio, logprobs, old_logprobs, advantages, clip_low, clip_high, dual_clip,
    SURROGATE: tl.constexpr, DUAL: tl.constexpr,
):  # fmt: skip
    p = tl.exp(logprobs)
    old = tl.exp(old_logprobs)
    divergence = tl.abs(p - old)
    if SURROGATE == _DPPO_KL:
        # Of the others: 1 - p, which rounding can make negative.
        others = tl.maximum(-expm1(logprobs), 0.0)
        old_others = tl.maximum(-expm1(old_logprobs), 0.0)
        odds = tl.log(old_others + _FLOOR) - tl.log(others + _FLOOR)
        divergence = old * (old_logprobs - logprobs) + old_others * odds
    below = (advantages < 0) & (p < old) & (divergence > clip_low)
    above = (advantages > 0) & (p > old) & (divergence > clip_high)
    masked = below | above
    far = below & above
    if DUAL:
        far = (advantages != 0) & (ratio > dual_clip) & (masked == 0)
        ratio = tl.where(ratio > dual_clip, dual_clip, ratio)
    direct = tl.where(masked, 0.0, ratio * advantages)
    return tl.where(masked, 0.0, direct * logprobs), ratio * 0.0, direct, below, above, far


@triton.jit
def _geometric_mean(ratio, log_ratio, own, advantages, clip_low, clip_high):
    """GMPO's, whose ratio is the response's: which tokens were clipped before the mean is seen in their own."""
    surrogate = ratio * advantages
    slope = tl.where(tl.abs(log_ratio) > 20.0, 0.0, surrogate)
    below, above = _beyond(own, advantages, clip_low, clip_high)
    return surrogate, slope, ratio * 0.0, below, above, below & above


@triton.jit
def _beyond(log_ratio, advantages, clip_low, clip_high):
    """Where GMPO clips a log-ratio below, and above."""
    return (advantages < 0) & (log_ratio < -clip_low), (advantages > 0) & (log_ratio > clip_high)


@triton.jit
def _correction(log_ratio, low, high, CORRECTION: tl.constexpr):
    """The weight that corrects for the sampler, and where it was cut or set to 0."""
    ratio = _bounded_exp(log_ratio)
    one = ratio * 0.0 + 1.0
    if CORRECTION == _NONE:
        return one, ratio < 0
    if CORRECTION == _TRUNCATE:
        return tl.where(ratio > high, high, ratio), ratio > high
    outside = (ratio < low) | (ratio > high)
    if CORRECTION == _ICEPOP:
        return tl.where(outside, 0.0, ratio), outside
    return tl.where(outside, 0.0, tl.where(ratio == ratio, one, ratio)), outside  # NaN stays


@triton.jit
def _divergence(raw, cap, KL: tl.constexpr, CAP: tl.constexpr):
    """The divergence from the reference by k1, k2, k3 or none, and its derivative to the logprob."""
    kl = raw * 0.0
    slope = raw * 0.0
    if KL != _NO_KL:
        log_ratio = _bounded(raw)
        if KL == _K1:
            kl = log_ratio
            slope = raw * 0.0 + 1.0
        elif KL == _K2:
            kl = log_ratio * log_ratio * 0.5
            slope = log_ratio
        else:
            excess = expm1(-log_ratio)
            kl = excess + log_ratio
            slope = -excess
        flat = raw != log_ratio
        if CAP:
            flat = flat | (tl.abs(kl) > cap)
            kl = tl.maximum(tl.minimum(kl, cap), -cap)
        slope = tl.where(flat, 0.0, slope)
    return kl, slope


@triton.jit
def _response_means(
    logprobs, old_logprobs, advantages, rollout_logprobs, response_mask, begin, end, clip_low, clip_high,
    RATIO: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Means of a response's log-ratios, to the old policy and to the sampler, and the number of its tokens."""
    summed = tl.zeros([BLOCK], tl.float32)
    summed_rollout = tl.zeros([BLOCK], tl.float32)
    tokens = tl.zeros([BLOCK], tl.float32)
    for start in range(begin, end, BLOCK):
        at = start + tl.arange(0, BLOCK)
        counted = _counts(response_mask, at, at < end)
        new = tl.load(logprobs + at, mask=counted, other=0.0)
        old = _field(old_logprobs, at, counted, counted, new)
        log_ratio = new - old
        if RATIO == _GEOMETRIC_MEAN:  # clipped before the mean; NaN stays
            a = tl.load(advantages + at, mask=counted, other=0.0)
            below, above = _beyond(log_ratio, a, clip_low, clip_high)
            log_ratio = tl.where(below, -clip_low, tl.where(above, clip_high, log_ratio))
        summed += log_ratio
        summed_rollout += old - _field(rollout_logprobs, at, counted, counted, old)
        tokens += counted.to(tl.float32)
    length = tl.maximum(tl.sum(tokens, 0), 1.0)
    return tl.sum(summed, 0) / length, tl.sum(summed_rollout, 0) / length, length


@triton.jit
def _add_to_response(
    gradient, value, logprobs, old_logprobs, advantages, response_mask, begin, end, clip_low, clip_high,
    RATIO: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds a number to the gradient of each of a response's tokens that moves its mean."""
    tl.debug_barrier()  # another thread may have written this one's places
    for start in range(begin, end, BLOCK):
        at = start + tl.arange(0, BLOCK)
        counted = _counts(response_mask, at, at < end)
        if RATIO == _GEOMETRIC_MEAN:
            new = tl.load(logprobs + at, mask=counted, other=0.0)
            a = tl.load(advantages + at, mask=counted, other=0.0)
            below, above = _beyond(new - _field(old_logprobs, at, counted, counted, new), a, clip_low, clip_high)
            counted = counted & ((below | above) == 0)
        own = tl.load(gradient + at, mask=counted, other=0.0)
        tl.store(gradient + at, own + value, mask=counted)


@triton.jit
def _token_objective(
    logprobs,  # [T], as all that follow; None where there is none
    old_logprobs,
    advantages,
    response_mask,
    ref_logprobs,
    rollout_logprobs,
    token_weights,
    entropy,
    cu_seqlens,  # [S + 1] with BY_RESPONSE
    num_loss_tokens,  # []
    grad_logprobs,
    grad_entropy,
    ratios,
    partial_sums,  # [programs, _NUM_SUMS]
    num_tokens,
    clip_low,
    clip_high,
    dual_clip,
    sapo_positive,
    sapo_negative,
    kl_coef,
    kl_cap,
    entropy_coef,
    correction_low,
    correction_high,
    SURROGATE: tl.constexpr,
    DUAL: tl.constexpr,
    KL: tl.constexpr,
    CAP: tl.constexpr,
    CORRECTION: tl.constexpr,
    BY_RESPONSE: tl.constexpr,
    RATIO: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Loss and derivatives of a block of tokens, or of one response where its tokens share a ratio or a mask."""
    program = tl.program_id(0).to(tl.int64)
    begin = program * BLOCK
    end = tl.minimum(begin + BLOCK, num_tokens)
    mean_log_ratio = 0.0
    mean_rollout = 0.0
    length = 1.0
    if BY_RESPONSE:
        # Wrong boundaries must not reach other memory; a CPU refuses them.
        begin = tl.maximum(tl.load(cu_seqlens + program), 0)
        end = tl.minimum(tl.load(cu_seqlens + program + 1), num_tokens)
        mean_log_ratio, mean_rollout, length = _response_means(
            logprobs, old_logprobs, advantages, rollout_logprobs, response_mask, begin, end, clip_low, clip_high,
            RATIO, BLOCK,
        )  # fmt: skip

    WIDE: tl.constexpr = not BY_RESPONSE  # noqa: N806
    inverse_count = 1.0 / tl.load(num_loss_tokens).to(tl.float32)
    sums = tl.zeros([_PADDED_SUMS], tl.float32)
    through_ratio = 0.0
    for start in range(begin, end, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside, whole = at < end, start + BLOCK <= end
        counted = _counts(response_mask, at, inside, whole, WIDE)
        one = counted.to(tl.float32)
        zero = one * 0.0
        new = _field(logprobs, at, inside, counted, zero, whole, WIDE)
        old = _field(old_logprobs, at, inside, counted, new, whole, WIDE)
        a = _field(advantages, at, inside, counted, zero, whole, WIDE)
        weight = _field(token_weights, at, inside, counted, one, whole, WIDE) * inverse_count
        e = _field(entropy, at, inside, counted, zero, whole, WIDE)
        reference = _field(ref_logprobs, at, inside, counted, new, whole, WIDE)
        rollout = _field(rollout_logprobs, at, inside, counted, old, whole, WIDE)
        log_ratio = new - old
        if RATIO != _TOKEN:
            log_ratio = tl.where(counted, mean_log_ratio, 0.0)
        rollout_log_ratio = old - rollout
        if CORRECTION == _SEQUENCE_MASK:
            rollout_log_ratio = tl.where(counted, mean_rollout, 0.0)
        ratio = _bounded_exp(log_ratio)
        surrogate, slope, direct, below, above, far = _surrogate(
            ratio, log_ratio, new - old, new, old, a, clip_low, clip_high, dual_clip, sapo_positive, sapo_negative,
            SURROGATE, RATIO, DUAL,
        )  # fmt: skip
        correction, corrected = _correction(rollout_log_ratio, correction_low, correction_high, CORRECTION)
        kl, kl_slope = _divergence(new - reference, kl_cap, KL, CAP)
        loss = weight * (kl_coef * kl - correction * surrogate - entropy_coef * e)
        through = -correction * slope * weight
        straight = (kl_coef * kl_slope - correction * direct) * weight
        if RATIO != _TOKEN:
            through_ratio += tl.sum(through, 0)
            through = through * 0.0
        _write(grad_logprobs, at, through + straight, inside, whole, WIDE)
        _write(ratios, at, ratio * one, inside, whole, WIDE)
        if grad_entropy is not None:
            _write(grad_entropy, at, -entropy_coef * weight, inside, whole, WIDE)
        sums = _add(sums, 0, loss)
        sums = _add(sums, 1, one)
        sums = _add(sums, 2, one * below.to(tl.float32))
        sums = _add(sums, 3, one * above.to(tl.float32))
        sums = _add(sums, 4, one * far.to(tl.float32))
        sums = _add(sums, 5, one * ratio)
        sums = _add(sums, 6, old - new)
        sums = _add(sums, 7, kl)
        sums = _add(sums, 8, e)
        sums = _add(sums, 9, one * correction)
        sums = _add(sums, 10, one * corrected.to(tl.float32))
    if RATIO != _TOKEN:
        # Each token moves the mean by one over the length.
        _add_to_response(
            grad_logprobs, through_ratio / length, logprobs, old_logprobs, advantages, response_mask, begin, end,
            clip_low, clip_high, RATIO, BLOCK,
        )  # fmt: skip
    places = tl.arange(0, _PADDED_SUMS)
    tl.store(partial_sums + program * _NUM_SUMS + places, sums, mask=places < _NUM_SUMS)


@triton.jit
def _add(sums, place: tl.constexpr, values):
    return sums + tl.where(tl.arange(0, _PADDED_SUMS) == place, tl.sum(values, 0), 0.0)
