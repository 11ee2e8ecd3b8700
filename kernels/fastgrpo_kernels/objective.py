"""The objective of a response token, as constants that every implementation reads.

The loss of response token t is, with ``n = num_loss_tokens`` and ``A`` the advantage,

    weight[t] / n * (-correction[t] * surrogate(ratio[t], A[t]) + kl_coef * kl(t) - entropy_coef * entropy[t])

`reference.grpo_loss` is the definition, clipped ratio and all, in plain torch. What runs is the primitive
`token_objective`: plain.py in torch, gpu/token_objective.py in Triton, csrc/token_objective.h in C++.
"""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any, Literal, get_args

Surrogate = Literal["clipped", "cispo"]
Kl = Literal["k1", "k2", "k3"]
Correction = Literal["none", "truncate", "icepop", "sequence_mask"]

_CHOICES = {"surrogate": Surrogate, "kl": Kl, "correction": Correction}
_NUMBERS = (
    "clip_low", "clip_high", "dual_clip", "kl_coef", "kl_cap", "entropy_coef", "correction_low", "correction_high",
)  # fmt: skip

LOG_RATIO_BOUND = 20.0
"""Log-ratios are clamped to +-20 before `exp`, which overflows in float32 at 88; beyond that there is no gradient."""

METRICS = (
    "num_tokens",  # response tokens
    "clipped_low",  # gradient removed by 1 - clip_low, where the advantage is negative
    "clipped_high",  # ... by 1 + clip_high, where it is positive
    "dual_clipped",  # ... by dual_clip
    "ratio",
    "kl_old",  # old minus new logprob: what the update moved (k1)
    "kl_ref",  # the estimator of `kl`, where there is a reference
    "entropy",
    "correction",  # the importance weight that corrects for the sampler
    "corrected",  # tokens whose weight was cut or set to 0
)
"""Sums over response tokens, in this order; divided by ``num_tokens`` they are means."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The constants of the token objective. The defaults are PPO's clip with DAPO's upper width, and nothing else."""

    clip_low: float = 0.2
    """The ratio counts down to 1 - clip_low."""
    clip_high: float = 0.28
    """The ratio counts up to 1 + clip_high."""
    dual_clip: float = 0.0
    """A negative advantage counts at most this many times in a token's surrogate (Ye 2020, eq. 5); 0: unbounded."""
    surrogate: Surrogate = "clipped"
    """clipped: PPO's pessimistic bound. cispo: the clipped ratio, detached, times the logprob (MiniMax-M1, eq. 4)."""
    sequence_ratio: bool = False
    """One ratio for a whole response, the geometric mean of its tokens' (GSPO, eq. 7). Needs `cu_seqlens`."""
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
        for name, known in _CHOICES.items():
            if getattr(self, name) not in get_args(known):
                raise ValueError(f"{name} must be one of {', '.join(get_args(known))}, got {getattr(self, name)!r}")
        for name in _NUMBERS:
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be a finite number, got {getattr(self, name)!r}")
        if not 0 <= self.clip_low <= 1 or self.clip_high < 0:
            raise ValueError(f"need 0 <= clip_low <= 1 and clip_high >= 0, got {self.clip_low} and {self.clip_high}")
        if self.dual_clip != 0 and self.dual_clip <= 1:
            raise ValueError(f"dual_clip must be above 1, or 0 for none, got {self.dual_clip}")
        if self.kl_coef < 0:
            raise ValueError(f"kl_coef must be 0 or more, got {self.kl_coef}")
        if self.kl_cap < 0:
            raise ValueError(f"kl_cap must be above 0, or 0 for none, got {self.kl_cap}")
        if not 0 <= self.correction_low <= self.correction_high:
            raise ValueError(
                f"need 0 <= correction_low <= correction_high, got {self.correction_low} and {self.correction_high}"
            )

    @property
    def needs_whole_responses(self) -> bool:
        """Whether a token's gradient depends on other tokens of its response."""
        return self.sequence_ratio or self.correction == "sequence_mask"

    def encode(self) -> list[float]:
        """The constants as a custom op's schema takes them: floats, a choice by its place in its list."""
        values = zip(fields(self), astuple(self), strict=True)
        return [float(get_args(_CHOICES[f.name]).index(v)) if f.name in _CHOICES else float(v) for f, v in values]

    @classmethod
    def decode(cls, numbers: Sequence[float]) -> "Objective":
        """The inverse of `encode`."""
        values: dict[str, Any] = {
            f.name: get_args(_CHOICES[f.name])[int(x)] if f.name in _CHOICES else bool(x) if f.type is bool else x
            for f, x in zip(fields(cls), numbers, strict=True)
        }
        return cls(**values)


def cispo(ratio_cap: float) -> Objective:
    """The objective of CISPO (MiniMax-M1): every token keeps a gradient, whose weight is bounded above alone."""
    return Objective(surrogate="cispo", clip_low=1.0, clip_high=ratio_cap - 1.0)


def gspo(clip_low: float = 3e-4, clip_high: float = 4e-4) -> Objective:
    """The objective of GSPO (Zheng 2025, section 5.1): ratios of responses, with clip widths for their small size."""
    return Objective(sequence_ratio=True, clip_low=clip_low, clip_high=clip_high)
