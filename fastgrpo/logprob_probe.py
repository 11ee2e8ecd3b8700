"""Whether engine and trainer mean the same by the same weights: both give logprobs of a fixed prompt's responses."""

from dataclasses import replace

import torch

from fastgrpo.policy.learner import Learner
from fastgrpo.policy.packing import pack
from fastgrpo.policy.sharding import reshard
from fastgrpo.rollout.compare_weights import WeightMismatch
from fastgrpo.rollout.rollouts import Rollouts
from fastgrpo.types import Prompt

PROBE_TOKENS = 16
TOLERANCES = {torch.float8_e4m3fn: 0.3, torch.bfloat16: 0.1, torch.float16: 0.1}
OTHERWISE = 2e-3
"""Mean difference of a token's logprob, nats: rounding is far below, stale or misplaced weights are far above."""


@torch.no_grad()
def probe(prompt: Prompt, rollouts: Rollouts, learner: Learner, dtype: torch.dtype) -> float:
    """The mean difference of a token's logprob, over all ranks, which all take part.

    Raises WeightMismatch above what rounding in the engine's ``dtype`` can do.
    """
    ranks = learner.ranks
    # Positions that no run reaches: the draws are the probe's own.
    prompts = [replace(prompt, position=-1 - i) for i in range(ranks.count)]
    sampling = replace(rollouts.sampling, group_size=1, max_response_tokens=PROBE_TOKENS)
    groups = ranks.share_of(ranks.gather(rollouts.generate(prompts, sampling)))
    batch = pack([sample for group in groups for sample in group]).to(ranks.device)
    logprobs, _ = learner.policy(batch, entropy=False)
    reshard(learner.policy)
    differences = (logprobs.float() - batch.at_responses(batch.rollout_logprobs)).abs().double().cpu()
    total, count = ranks.sum(torch.stack([differences, torch.ones_like(differences)]).sum(1)).tolist()
    found, allowed = total / count, TOLERANCES.get(dtype, OTHERWISE)
    if not found <= allowed:
        raise WeightMismatch(
            f"engine and trainer hold the same weights and mean different things by them: over {count:.0f} tokens of a "
            f"probe prompt their logprobs differ by {found:.3g} in the mean, more than {allowed:g}. The engine may "
            f"sample at another temperature or with top-p, know the architecture under other constants (rope, norm "
            f"epsilon), or have kept keys and values of older weights"
        )
    return found
