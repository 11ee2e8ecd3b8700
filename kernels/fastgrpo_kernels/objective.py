"""The objective of a response token, as constants that every implementation reads.

The loss of response token t is, with ``n = num_loss_tokens`` and ``A`` the advantage,

    weight[t] / n * (-correction[t] * surrogate(ratio[t], A[t]) + kl_coef * kl(t) - entropy_coef * entropy[t])

`reference.grpo_loss` is the definition, clipped ratio and all, in plain torch. What runs is the primitive
`token_objective`: plain.py in torch, gpu/token_objective.py in Triton, csrc/token_objective.h in C++.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, Literal, get_args

Surrogate = Literal["clipped", "cispo", "sapo", "dppo_tv", "dppo_kl"]
Ratio = Literal["token", "sequence", "geometric_mean"]
Kl = Literal["k1", "k2", "k3"]
Correction = Literal["none", "truncate", "icepop", "sequence_mask"]

_CHOICES: dict[str, tuple[str, ...]] = {
    "surrogate": get_args(Surrogate),
    "ratio": get_args(Ratio),
    "kl": get_args(Kl),
    "correction": get_args(Correction),
}

LOG_RATIO_BOUND = 20.0
"""Log-ratios are clamped to +-20 before `exp`, which overflows in float32 at 88; beyond that no gradient goes
through a ratio."""

PROBABILITY_FLOOR = 1e-8
"""Added to the probability of all other tokens in dppo_kl's divergence, as verl does: a certain token has none."""

METRICS = (
    "num_tokens",  # response tokens
    "clipped_low",  # gradient removed or bounded on the side of clip_low (sapo: a gate below half, ratio below 1)
    "clipped_high",  # ... of clip_high (sapo: ratio above 1)
    "dual_clipped",  # ... by dual_clip
    "ratio",
    "kl_old",  # old minus new logprob: what the update moved (k1)
    "kl_ref",  # the estimator of `kl`, where there is a reference
    "entropy",
    "correction",  # the importance weight that corrects for the sampler
    "corrected",  # tokens whose weight was cut or set to 0
)
"""Sums over response tokens, in this order; divided by ``num_tokens`` they are means.

Tokens whose advantage is 0 are never counted as clipped. With the surrogates clipped, dppo_tv and dppo_kl the low side
removes gradients of negative advantages and the high side those of positive ones; cispo and sapo bound either sign on
either side."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The constants of the token objective. The defaults are PPO's clip with DAPO's upper width, and nothing else."""

    clip_low: float = 0.2
    """The ratio counts down to 1 - clip_low. With ratio geometric_mean a log-ratio counts down to -clip_low; with
    dppo_* this is the largest divergence of a token whose probability falls; sapo has no bounds."""
    clip_high: float = 0.28
    """The ratio counts up to 1 + clip_high; a log-ratio up to clip_high; the largest divergence where it rises."""
    dual_clip: float = 0.0
    """clipped: a negative advantage counts at most this many times in a token's surrogate (Ye 2020, eq. 5). dppo_*: the
    ratio of any token counts at most this (its section 5.4). 0: unbounded."""
    surrogate: Surrogate = "clipped"
    """clipped: PPO's pessimistic bound.

    cispo: the clipped ratio, detached, times the logprob (MiniMax-M1, arXiv 2506.13585, eq. 4).
    sapo: ``4 / tau * sigmoid(tau * (ratio - 1))``, a soft gate in the place of bounds (arXiv 2511.20347).
    dppo_tv, dppo_kl: the ratio, detached, times the logprob, and nothing for tokens whose probability has moved in the
    direction of their advantage so far that the divergence of this token against all others, total variation or
    KL(old || new), is above its bound (arXiv 2602.04879, eq. 11-14)."""
    ratio: Ratio = "token"
    """token: each token's own.

    sequence: one for a response, the geometric mean of its tokens' (GSPO, arXiv 2507.18071, eq. 7).
    geometric_mean: the same of ratios that were clipped pessimistically before it and not after (GMPO, arXiv
    2507.20673, eq. 4).
    The last two need `cu_seqlens`. Every token then carries the loss of its response, which `token_weights` of one over
    the length count once; where weights differ inside a response, the gradient of its tokens has their mean."""
    sapo_positive: float = 1.0
    """SAPO's tau where the advantage is positive: the higher, the faster the gate closes."""
    sapo_negative: float = 1.05
    """... and where it is not."""
    kl: Kl = "k3"
    """Estimator of the divergence from the reference (Schulman 2020): k1 log-ratio, k2 half its square, k3 unbiased."""
    kl_coef: float = 0.0
    """0 needs no reference."""
    kl_cap: float = 0.0
    """A token's divergence counts up to this, in either sign (verl's k3 and NeMo-RL's k2: 10); 0: all of it."""
    entropy_coef: float = 0.0
    """Bonus for entropy in nats."""
    correction: Correction = "none"
    """What corrects for the difference to the sampler, by the ratio of old to rollout probability.

    truncate (TIS): a token's weight is its ratio, at most correction_high. icepop: the same, and tokens outside of
    [correction_low, correction_high] are dropped. sequence_mask: no weight, and responses are dropped whose geometric
    mean is outside."""
    correction_low: float = 0.0
    correction_high: float = 2.0

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_numbers()
        self._check_combination()

    def _check_choices(self) -> None:
        for name, choices in _CHOICES.items():
            got = getattr(self, name)
            if got not in choices:
                near = get_close_matches(str(got), choices, n=1)
                guess = f", did you mean {near[0]}?" if near else ""
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {got!r}{guess}")

    def _check_numbers(self) -> None:
        for name, value in vars(self).items():
            if name not in _CHOICES and not math.isfinite(value):
                raise ValueError(f"{name} must be a finite number, got {value!r}")
        bounds_a_ratio = self.surrogate in ("clipped", "cispo") and self.ratio != "geometric_mean"
        if self.clip_low < 0 or self.clip_high < 0 or (bounds_a_ratio and self.clip_low > 1):
            raise ValueError(f"need 0 <= clip_low <= 1 and clip_high >= 0, got {self.clip_low} and {self.clip_high}")
        if self.dual_clip != 0 and self.dual_clip <= 1:
            raise ValueError(f"dual_clip must be above 1, or 0 for none, got {self.dual_clip}")
        if self.sapo_positive <= 0 or self.sapo_negative <= 0:
            raise ValueError(
                f"sapo_positive and sapo_negative must be above 0, got {self.sapo_positive} and {self.sapo_negative}"
            )
        if self.kl_coef < 0:
            raise ValueError(f"kl_coef must be 0 or more, got {self.kl_coef}")
        if self.kl_cap < 0:
            raise ValueError(f"kl_cap must be above 0, or 0 for none, got {self.kl_cap}")
        if not 0 <= self.correction_low <= self.correction_high:
            raise ValueError(
                f"need 0 <= correction_low <= correction_high, got {self.correction_low} and {self.correction_high}"
            )

    def _check_combination(self) -> None:
        """Raises ValueError for parts that no formula has together."""
        if self.ratio != "token" and self.surrogate != "clipped":
            raise ValueError(
                f"the surrogate {self.surrogate} is defined by each token's own ratio, and ratio {self.ratio} gives a "
                f"whole response one: take ratio token, or the surrogate clipped"
            )
        if self.dual_clip and self.surrogate in ("cispo", "sapo"):
            bound = "clip_high caps its ratio" if self.surrogate == "cispo" else "its gate closes by itself"
            raise ValueError(
                f"the surrogate {self.surrogate} has no dual_clip, since {bound}: set dual_clip to 0, got "
                f"{self.dual_clip}"
            )
        if self.dual_clip and self.ratio == "geometric_mean":
            raise ValueError(
                f"ratio geometric_mean has no dual_clip, since ratios are clipped before the mean: set dual_clip to 0, "
                f"got {self.dual_clip}"
            )

    @property
    def needs_whole_responses(self) -> bool:
        """Whether a token's gradient depends on other tokens of its response."""
        return self.ratio != "token" or self.correction == "sequence_mask"

    def encode(self) -> list[float]:
        """The constants as a custom op's schema takes them: floats, a choice by its place in its list."""
        return [float(_CHOICES[name].index(value) if name in _CHOICES else value) for name, value in vars(self).items()]

    @classmethod
    def decode(cls, numbers: Sequence[float]) -> "Objective":
        """The inverse of `encode`."""
        names = (f.name for f in fields(cls))
        values: dict[str, Any] = {
            name: _CHOICES[name][int(x)] if name in _CHOICES else x for name, x in zip(names, numbers, strict=True)
        }
        return cls(**values)


def cispo(ratio_cap: float) -> Objective:
    """The objective of CISPO (MiniMax-M1): every token keeps a gradient, whose weight is bounded above alone."""
    return Objective(surrogate="cispo", clip_low=1.0, clip_high=ratio_cap - 1.0)


def gspo(clip_low: float = 3e-4, clip_high: float = 4e-4) -> Objective:
    """The objective of GSPO (Zheng 2025, section 5.1): ratios of responses, with clip widths for their small size."""
    return Objective(ratio="sequence", clip_low=clip_low, clip_high=clip_high)


def gmpo(clip_low: float = 0.4, clip_high: float = 0.4) -> Objective:
    """The objective of GMPO (Zhao 2025): the geometric mean of clipped ratios, each within exp(-0.4) and exp(0.4)."""
    return Objective(ratio="geometric_mean", clip_low=clip_low, clip_high=clip_high)


def sapo(positive: float = 1.0, negative: float = 1.05) -> Objective:
    """The objective of SAPO (Gao 2025): a soft gate, which closes faster for negative advantages."""
    return Objective(surrogate="sapo", sapo_positive=positive, sapo_negative=negative)


def dppo(divergence: Literal["tv", "kl"] = "tv", bound: float | None = None, ratio_cap: float = 0.0) -> Objective:
    """The objective of DPPO (Qi 2026) by a binary divergence; None: its authors' bound, 0.15 for TV and 0.05 for KL."""
    if bound is None:
        bound = 0.15 if divergence == "tv" else 0.05
    surrogate: Any = f"dppo_{divergence}"
    return Objective(surrogate=surrogate, clip_low=bound, clip_high=bound, dual_clip=ratio_cap)
