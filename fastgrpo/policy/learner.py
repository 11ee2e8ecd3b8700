"""The gradient of an update, and the update."""

import math
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

import torch
from fastgrpo_kernels import METRICS, GrpoOutput
from torch import Tensor

from fastgrpo.config import ObjectiveConfig, OptimizerConfig
from fastgrpo.objective import token_objective
from fastgrpo.packing import SequenceCost, pack, plan_microbatches
from fastgrpo.policy.losses import LOSSES
from fastgrpo.policy.mismatch import NUM_BINS, histogram, quantile
from fastgrpo.policy.model import Policy
from fastgrpo.policy.optimizer import clip, gradient_norm, local_gradients, make_optimizer
from fastgrpo.policy.sharding import accumulate, reshard
from fastgrpo.ranks import Ranks
from fastgrpo.types import PackedBatch, Sequence


@dataclass(frozen=True)
class Update:
    """This rank's micro-batches of one optimizer update, and the tokens that all ranks have in it together."""

    batches: list[PackedBatch]
    num_loss_tokens: int
    is_first: bool = True  # of its step: the weights are still those that sampled
    old_are_rollout: bool = False  # old_logprobs are the sampler's, not the trainer's own


CLIPPED = ("clipped_low", "clipped_high", "dual_clipped")


@dataclass
class TokenSums:
    """Sums over this rank's response tokens. Summed over ranks, `metrics` makes the step's figures of them."""

    values: Tensor  # [len(NAMES)] float64, on the CPU

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
        *(f"logprob_diff_bin_{i}" for i in range(NUM_BINS)),
    )

    @classmethod
    def zero(cls) -> "TokenSums":
        return cls(torch.zeros(len(cls.NAMES), dtype=torch.float64))

    def add(
        self,
        output: GrpoOutput,
        trainer_logprobs: Tensor | None,  # [R] under the weights that sampled, or None where nobody knows them
        rollout_logprobs: Tensor,  # [R]
        weighed: bool,  # whether the objective corrects for the sampler
    ) -> None:
        known = dict(zip(METRICS, output.metrics.unbind(), strict=True))
        no_entropy = torch.full_like(rollout_logprobs, math.nan)
        entropy = no_entropy if output.entropy is None else output.entropy.detach()
        differences = rollout_logprobs[:0] if trainer_logprobs is None else rollout_logprobs - trainer_logprobs
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
        }
        scalars = torch.stack([rows.double().sum() for rows in sums.values()])
        self.values += torch.cat([scalars, histogram(differences)]).cpu()  # one copy from the device

    @classmethod
    def metrics(cls, summed: Tensor, num_tokens: int) -> dict[str, float]:
        """The step's figures from the values summed over ranks; NaN where nothing was counted.

        ``num_tokens`` are all sampled ones. Responses without advantage may have been left out of the passes: what
        needs a pass is a mean over the tokens that were in one.
        """
        sums = dict(zip(cls.NAMES, summed.tolist(), strict=True))
        trained, compared, weighed = (sums[n] or math.nan for n in ("num_tokens", "num_compared", "num_weighed"))
        return {
            "entropy": sums["entropy"] / trained,
            "rollout_kl": sums["rollout_kl"] / compared,
            "logprob_diff_p99": quantile(summed[-NUM_BINS:], 0.99),
            "logprob_diff_above_001_frac": sums["logprob_diff_above_001"] / compared,
            "clip_frac": sums["clipped"] / (num_tokens or math.nan),
            "correction": sums["correction"] / weighed,
            "corrected_frac": sums["corrected"] / weighed,
        }


class Learner:
    """Owns the sharded policy and its optimizer."""

    def __init__(
        self,
        policy: Policy,
        ranks: Ranks,
        cost: SequenceCost,
        objective: ObjectiveConfig,
        optimizer: OptimizerConfig,
        need_entropy: bool = True,
    ) -> None:
        self.policy, self.ranks, self.cost = policy, ranks, cost
        self.objective, self.loss, self.config = token_objective(objective), LOSSES[objective.head], optimizer
        self.need_entropy = need_entropy  # not where the sampler tells it: the full vocabulary costs a pass
        self.parameters = [p for p in policy.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(self.parameters, optimizer)

    def pack(self, sequences: Seq[Sequence]) -> Update:
        """This rank's share of one update. Every rank must be given the same sequences."""
        num_loss_tokens = sum(len(s.response) for s in sequences)
        if self.config.skip_zero_advantage:
            sequences = [s for s in sequences if s.advantage != 0]
        share = self.config.share_prompts and self.policy.can_share_prompts
        budget = self.config.tokens_per_microbatch
        plan = plan_microbatches(sequences, self.ranks.count, budget, self.cost, share_prompts=share)
        batches = [pack(chosen, share_prompts=share) for chosen in plan[self.ranks.rank]]
        return Update([b.to(self.ranks.device) for b in batches], num_loss_tokens)

    @torch.no_grad()
    def with_old_logprobs(self, update: Update) -> Update:
        """The update with the logprobs of the current weights, before any update of the step changes them."""
        batches = [replace(b, old_logprobs=self.policy(b, entropy=False)[0]) for b in update.batches]
        reshard(self.policy)
        return replace(update, batches=batches)

    def with_rollout_logprobs(self, update: Update) -> Update:
        """The update with the sampler's logprobs for old ones, which spares a forward pass."""
        batches = [replace(b, old_logprobs=b.at_responses(b.rollout_logprobs)) for b in update.batches]
        return replace(update, batches=batches, old_are_rollout=True)

    def backward(self, update: Update, sums: TokenSums) -> None:
        """Adds the gradient of one update, summed over ranks, to the parameters."""
        for i, batch in enumerate(update.batches):
            accumulate(self.policy, is_last=i == len(update.batches) - 1)
            output = self.loss(self.policy, batch, update.num_loss_tokens, self.objective, self.need_entropy)
            output.loss.backward()
            trainer_logprobs: Tensor | None = output.logprobs if batch.old_logprobs is None else batch.old_logprobs
            if update.old_are_rollout:
                trainer_logprobs = output.logprobs if update.is_first else None
            weighed = self.objective.correction != "none"
            sums.add(output, trainer_logprobs, batch.at_responses(batch.rollout_logprobs), weighed)

    def apply(self, learning_rate: float) -> float:
        """Clips the accumulated gradient, updates the weights and clears it. Returns the norm before clipping.

        A norm that is not finite leaves the weights and the optimizer's state as they are.
        """
        gradients = local_gradients(self.parameters)
        norm = gradient_norm(gradients, self.ranks.mesh)
        if torch.isfinite(norm):
            clip(gradients, norm, self.config.max_grad_norm)
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
            self.optimizer.step()
        self.optimizer.zero_grad()
        return float(norm)
