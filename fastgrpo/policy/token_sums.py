"""A step's figures that are means over its tokens: summed on the device, micro-batch by micro-batch."""

import math
from dataclasses import dataclass

import torch
from fastgrpo_kernels import METRICS, GrpoOutput, Objective
from torch import Tensor

from fastgrpo.policy.mismatch import NUM_BINS, histogram, quantile

CLIPPED = ("clipped_low", "clipped_high", "dual_clipped")


@dataclass
class TokenSums:
    """Sums over this rank's response tokens. Summed over ranks, `metrics` makes the step's figures of them."""

    values: Tensor  # [len(NAMES)] float64, on the device of the policy: nobody waits for it before the step ends

    NAMES = (
        "num_tokens",
        "entropy",
        "clipped",
        "num_compared",
        "rollout_kl",
        "logprob_diff_above_001",
        "num_weighed",
        "correction",
        "corrected",
        "num_referred",
        "kl_ref",
        *(f"logprob_diff_bin_{i}" for i in range(NUM_BINS)),
    )

    @classmethod
    def zero(cls, device: torch.device | str = "cpu") -> "TokenSums":
        return cls(torch.zeros(len(cls.NAMES), dtype=torch.float64, device=device))

    def add(
        self,
        output: GrpoOutput,
        trainer_logprobs: Tensor | None,  # [R] under the weights that sampled, or None where nobody knows them
        rollout_logprobs: Tensor,  # [R]
        objective: Objective,
    ) -> None:
        known = dict(zip(METRICS, output.metrics.unbind(), strict=True))
        no_entropy = torch.full_like(rollout_logprobs, math.nan)
        entropy = no_entropy if output.entropy is None else output.entropy.detach()
        differences = rollout_logprobs[:0] if trainer_logprobs is None else rollout_logprobs - trainer_logprobs
        weighed, referred = objective.correction != "none", objective.kl_coef > 0
        sums = {
            "num_tokens": torch.ones_like(rollout_logprobs),
            "entropy": entropy,
            "clipped": torch.stack([known[name] for name in CLIPPED]),
            "num_compared": torch.ones_like(differences),
            "rollout_kl": differences,
            "logprob_diff_above_001": ~(differences.abs() <= 0.01),  # NaN is not near
            "num_weighed": torch.full_like(rollout_logprobs, weighed),
            "correction": known["correction"],
            "corrected": known["corrected"],
            "num_referred": torch.ones_like(rollout_logprobs) if referred else rollout_logprobs[:0],
            "kl_ref": known["kl_ref"] if referred else rollout_logprobs[:0],
        }
        scalars = torch.stack([rows.double().sum() for rows in sums.values()])
        self.values += torch.cat([scalars, histogram(differences)])

    @classmethod
    def metrics(cls, summed: Tensor, num_tokens: int) -> dict[str, float]:
        """The step's figures from the values summed over ranks; NaN where nothing was counted.

        ``num_tokens`` are all sampled ones. Responses without advantage may have been left out of the passes: what
        needs a pass is a mean over the tokens that were in one.
        """
        sums = dict(zip(cls.NAMES, summed.tolist(), strict=True))
        trained, compared, weighed = (sums[n] or math.nan for n in ("num_tokens", "num_compared", "num_weighed"))
        reference = {"reference_kl": sums["kl_ref"] / sums["num_referred"]} if sums["num_referred"] else {}
        return {
            "entropy": sums["entropy"] / trained,
            "rollout_kl": sums["rollout_kl"] / compared,
            "logprob_diff_p99": quantile(summed[-NUM_BINS:], 0.99),
            "logprob_diff_above_001_frac": sums["logprob_diff_above_001"] / compared,
            "clip_frac": sums["clipped"] / (num_tokens or math.nan),
            "correction": sums["correction"] / weighed,
            "corrected_frac": sums["corrected"] / weighed,
            **reference,
        }
