"""How far the sampler's logprobs are from the trainer's: where both have the same weights they should be the same."""

import math

import torch
from torch import Tensor

# 400 bins between these, each 5.3 % wider than the one before it; then three: nearer, farther, not finite.
NEAREST, FARTHEST, _NUM_BETWEEN = 1e-7, 1e2, 400
NUM_BINS = _NUM_BETWEEN + 3
_DECADES = math.log10(FARTHEST / NEAREST)

_CAUSES = """\
The usual causes, the most frequent first:
1. Weights that did not reach the sampler, or keys and values of older ones in its prefix cache. Look whether the first
   step, before any update, is well; --sync.compare_every 1 compares every weight after every sync.
2. Another temperature, or a top-p, top-k or penalty in the sampler. Look at the engine's sampling settings and at the
   model's generation_config.json, against --rollout.temperature.
3. Other tokens: a chat template or BOS applied twice, or text that was tokenised again. Look at the prompt_ids and
   response_ids of one rollout on both sides.
4. An engine in bfloat16 or fp8 beside the trainer's float32 logits. Look whether it is less with --rollout.dtype
   float32; --objective.correction truncate or icepop bounds what such tokens do. The routers of a mixture of experts
   then choose other experts on either side, for there is no router replay (docs/moe.md).
5. Responses of weights that are too old: lower --rollout.max_staleness."""


def histogram(differences: Tensor) -> Tensor:  # [R] -> [NUM_BINS] float64
    """How many magnitudes are in each bin, on their device and without a wait. Sums over ranks are exact."""
    magnitudes = differences.detach().double().abs()
    places = ((magnitudes.log10() - math.log10(NEAREST)) * (_NUM_BETWEEN / _DECADES)).floor().clamp(-1, _NUM_BETWEEN)
    places = torch.where(magnitudes.isfinite(), places + 1, NUM_BINS - 1)
    return magnitudes.new_zeros(NUM_BINS).index_add(0, places.long(), torch.ones_like(magnitudes))


def quantile(
    counts: Tensor,  # [NUM_BINS] of `histogram`, summed
    share: float,
) -> float:
    """The magnitude that this share of the differences stays within, off by half a bin (2.6 %) at most.

    One below 1e-7 is 0, one above 100 is 100. NaN if there were no differences, or any that is not finite.
    """
    total = float(counts.sum())
    if total == 0 or counts[-1] > 0:
        return math.nan
    place = int(torch.searchsorted(counts.cumsum(0), share * total))
    if place in (0, NUM_BINS - 2):
        return 0.0 if place == 0 else FARTHEST
    return NEAREST * 10 ** ((place - 0.5) / _NUM_BETWEEN * _DECADES)


def mismatch_warning(
    metrics: dict[str, float],  # of `TokenSums.metrics`
    alarm: float,  # nats a token; 0: never
) -> str | None:
    """What to tell the user of a step whose sampler is not the policy that is trained; None if all is well."""
    kl, p99, far = (metrics[n] for n in ("rollout_kl", "logprob_diff_p99", "logprob_diff_above_001_frac"))
    nothing_compared = math.isnan(far)  # it is a share of a count: logprobs that are NaN do not make it so
    if alarm == 0 or nothing_compared or abs(kl) <= alarm:
        return None
    found = f"{kl:.3g} nats a token, beyond --objective.rollout_kl_alarm {alarm:g}"
    if math.isnan(kl):
        found = "NaN: logprobs of the sampler or the trainer are not finite, as those of broken weights are"
    return (
        f"the sampler is not the policy that is trained: rollout_kl is {found}. The logprobs of a token differ by "
        f"{p99:.3g} at the 99th percentile, and by more than 0.01 at {far:.1%} of the tokens.\n{_CAUSES}"
    )
