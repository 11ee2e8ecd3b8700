"""The definition of every op in plain torch, which in float64 is the oracle of the tests.

Gradients are autograd's, and all logits exist at once. No op calls this module.
"""

import torch
from torch import Tensor

from .group_advantages import Baseline, Scale
from .objective import LOG_RATIO_BOUND, PROBABILITY_FLOOR, Objective


def logprobs_from_logits(
    logits: Tensor,  # [T, V]
    target_ids: Tensor,  # [T] int64
    *,
    temperature: float | Tensor = 1.0,  # or [T]
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:  # [T], [T]
    """Log-probability of each target and entropy of the whole distribution, in nats."""
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if isinstance(temperature, Tensor):
        temperature = temperature[:, None]
    log_probs = torch.log_softmax(logits / temperature, dim=-1)
    p = log_probs.exp()
    entropy = -(p * torch.where(p > 0, log_probs, 0.0)).sum(-1)  # 0 log 0 is 0
    return log_probs.gather(1, target_ids[:, None]).squeeze(1), entropy


def linear_logprobs(
    hidden: Tensor,  # [T, D]
    weight: Tensor,  # [V, D]
    target_ids: Tensor,  # [T] int64
    *,
    bias: Tensor | None = None,  # [V]
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:  # [T], [T]
    """Log-probability and entropy from hidden states and the LM head's weight."""
    logits = torch.nn.functional.linear(hidden, weight, bias)
    return logprobs_from_logits(logits, target_ids, temperature=temperature, softcap=softcap)


def grpo_loss(
    logprobs: Tensor,  # [T]
    old_logprobs: Tensor | None,  # [T]; None: the current ones, without gradient
    advantages: Tensor,  # [T]
    num_loss_tokens: float,
    objective: Objective,
    *,
    response_mask: Tensor | None = None,  # [T] bool
    ref_logprobs: Tensor | None = None,  # [T]
    rollout_logprobs: Tensor | None = None,  # [T]
    entropy: Tensor | None = None,  # [T]
    token_weights: Tensor | None = None,  # [T]
    cu_seqlens: Tensor | None = None,  # [S + 1]
) -> Tensor:  # []
    """Loss of the tokens in the mask, by the formula of `objective.py`."""
    mask = torch.ones_like(logprobs, dtype=torch.bool) if response_mask is None else response_mask
    old = logprobs.detach() if old_logprobs is None else old_logprobs
    # Masked before exp: a late mask leaves NaN in the gradient.
    log_ratio, advantages = torch.where(mask, logprobs - old, 0.0), torch.where(mask, advantages, 0.0)
    if objective.ratio == "geometric_mean":
        log_ratio = _pessimistic(log_ratio, advantages, objective)
    if objective.ratio != "token":
        assert cu_seqlens is not None
        log_ratio = _mean_of_each_response(log_ratio, mask, cu_seqlens)
    ratio = log_ratio.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()
    surrogate = _surrogate(ratio, torch.where(mask, logprobs, 0.0), torch.where(mask, old, 0.0), advantages, objective)
    if objective.correction != "none":
        assert rollout_logprobs is not None
        correction_log = torch.where(mask, old - rollout_logprobs, 0.0).detach()
        surrogate = surrogate * _correction(correction_log, mask, cu_seqlens, objective)
    loss = -surrogate
    if objective.kl_coef:
        assert ref_logprobs is not None
        loss = loss + objective.kl_coef * _kl(torch.where(mask, logprobs - ref_logprobs, 0.0), objective)
    if objective.entropy_coef:
        assert entropy is not None
        loss = loss - objective.entropy_coef * torch.where(mask, entropy, 0.0)
    if token_weights is not None:
        loss = loss * torch.where(mask, token_weights, 0.0)
    return torch.where(mask, loss, 0.0).sum() / num_loss_tokens


def _pessimistic(log_ratio: Tensor, advantages: Tensor, objective: Objective) -> Tensor:
    """The log-ratios of GMPO (arXiv 2507.20673, eq. 4): clipped where that makes the token's surrogate smaller."""
    clipped = log_ratio.clamp(-objective.clip_low, objective.clip_high)
    smaller = torch.where(advantages > 0, torch.minimum(log_ratio, clipped), torch.maximum(log_ratio, clipped))
    return torch.where(advantages == 0, log_ratio, smaller)


def _surrogate(
    ratio: Tensor, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, objective: Objective
) -> Tensor:
    if objective.ratio == "geometric_mean":
        return ratio * advantages
    if objective.surrogate == "sapo":
        tau = torch.full_like(ratio, objective.sapo_positive).where(advantages > 0, objective.sapo_negative)
        return 4 / tau * torch.sigmoid(tau * (ratio - 1)) * advantages
    if objective.surrogate.startswith("dppo"):
        weight = ratio.clamp(max=objective.dual_clip) if objective.dual_clip else ratio
        too_far = _too_far(logprobs.detach(), old_logprobs.detach(), advantages, objective)
        return torch.where(too_far, 0.0, weight.detach() * advantages * logprobs)
    clipped = ratio.clamp(1 - objective.clip_low, 1 + objective.clip_high)
    if objective.surrogate == "cispo":
        return clipped.detach() * advantages * logprobs
    surrogate = torch.minimum(ratio * advantages, clipped * advantages)
    if objective.dual_clip:
        floored = torch.maximum(surrogate, objective.dual_clip * advantages)
        surrogate = torch.where(advantages < 0, floored, surrogate)
    return surrogate


def _too_far(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, objective: Objective) -> Tensor:
    """Where the advantage pushes a token's probability on that is beyond its bound (arXiv 2602.04879, eq. 12-14)."""
    p, old = logprobs.exp(), old_logprobs.exp()
    divergence = (p - old).abs()
    if objective.surrogate == "dppo_kl":
        # Of the others: 1 - p, which rounding can make negative.
        others, old_others = (torch.expm1(x).neg().clamp(min=0) for x in (logprobs, old_logprobs))
        odds = (old_others + PROBABILITY_FLOOR).log() - (others + PROBABILITY_FLOOR).log()
        divergence = old * (old_logprobs - logprobs) + old_others * odds
    rising = (advantages > 0) & (p > old) & (divergence > objective.clip_high)
    falling = (advantages < 0) & (p < old) & (divergence > objective.clip_low)
    return rising | falling


def _correction(log_ratio: Tensor, mask: Tensor, cu_seqlens: Tensor | None, objective: Objective) -> Tensor:
    if objective.correction == "sequence_mask":
        assert cu_seqlens is not None
        log_ratio = _mean_of_each_response(log_ratio, mask, cu_seqlens)
    ratio = log_ratio.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()
    if objective.correction == "truncate":
        return ratio.clamp(max=objective.correction_high)
    within = (ratio >= objective.correction_low) & (ratio <= objective.correction_high)
    weight = ratio if objective.correction == "icepop" else torch.ones_like(ratio)
    return torch.where(within, weight, 0.0)


def _kl(log_ratio: Tensor, objective: Objective) -> Tensor:
    """Divergence of the policy from the reference; ``log_ratio`` is logprobs minus ref_logprobs."""
    log_ratio = log_ratio.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    kl = {
        "k1": lambda: log_ratio,
        "k2": lambda: log_ratio.square() / 2,
        "k3": lambda: torch.expm1(-log_ratio) + log_ratio,
    }[objective.kl]()
    return kl.clamp(-objective.kl_cap, objective.kl_cap) if objective.kl_cap else kl


def _mean_of_each_response(values: Tensor, mask: Tensor, cu_seqlens: Tensor) -> Tensor:  # [T] -> [T]
    lengths = cu_seqlens.diff().tolist()
    parts = zip(values.split(lengths), mask.split(lengths), strict=True)
    return torch.cat([(v.sum() / m.sum().clamp(min=1)).expand(len(v)) for v, m in parts]) if lengths else values


def linear_grpo(
    hidden: Tensor,
    weight: Tensor,
    target_ids: Tensor,
    old_logprobs: Tensor | None,
    advantages: Tensor,
    num_loss_tokens: float,
    objective: Objective,
    *,
    bias: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    **fields: Tensor | None,
) -> Tensor:  # []
    """Loss from hidden states; ``fields`` are `grpo_loss`'s other tensors."""
    logprobs, entropy = linear_logprobs(hidden, weight, target_ids, bias=bias, temperature=temperature, softcap=softcap)
    return grpo_loss(logprobs, old_logprobs, advantages, num_loss_tokens, objective, entropy=entropy, **fields)


def group_advantages(
    rewards: Tensor,  # [N]
    group_lengths: list[int],
    *,
    baseline: Baseline = "mean",
    scale: Scale = "group",
    eps: float = 1e-6,
) -> Tensor:  # [N]
    """Each reward minus its group's baseline, over a standard deviation with Bessel's correction."""
    centred = []
    for group in rewards.split(group_lengths):
        if len(group) < 2 or bool((group == group[0]).all()):
            centred.append(torch.zeros_like(group))
            continue
        others = (group.sum() - group) / (len(group) - 1)
        centre = group - (others if baseline == "leave_one_out" else group.mean())
        centred.append(centre / (group.std() + eps) if scale == "group" else centre)
    flat = torch.cat(centred) if centred else rewards
    if scale == "batch" and len(flat) > 1:
        flat = flat / (flat.std() + eps)
    return flat
