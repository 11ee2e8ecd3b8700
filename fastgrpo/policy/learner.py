"""The gradient of an update, and the update."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastgrpo.algorithm.objective_settings import objective_of
from fastgrpo.config import ObjectiveConfig, OptimizerConfig
from fastgrpo.models.packed_batch import PackedBatch
from fastgrpo.policy.losses import LOSSES
from fastgrpo.policy.optimizer import clip, gradient_norm, local_gradients, make_optimizer, step_unless
from fastgrpo.policy.packing import SequenceCost, pack, plan_microbatches
from fastgrpo.policy.policy import Policy
from fastgrpo.policy.reference import Reference
from fastgrpo.policy.sharding import accumulate, reshard
from fastgrpo.policy.token_sums import TokenSums
from fastgrpo.ranks import Ranks
from fastgrpo.types import Sample


@dataclass(frozen=True)
class Update:
    """This rank's micro-batches of one optimizer update."""

    batches: list[PackedBatch]
    denominators: list[int | float]  # of each, what its loss is divided by: the loss tokens of all ranks together
    is_first: bool = True  # of its step: the weights are still those that sampled
    old_are_rollout: bool = False  # old_logprobs are the sampler's, not the trainer's own


def verl_denominator(microbatch: Sequence[Sample], num_responses: int) -> float:
    """What a micro-batch's loss is divided by where verl 0.4's weights hold: its own token mean counts by its share of
    the responses of the update (thunlp/JustRL train/verl/workers/actor/dp_actor.py). One without any counts as 1."""
    num_tokens = max(1, sum(s.response.num_sampled_tokens for s in microbatch))
    return num_tokens * num_responses / len(microbatch) if microbatch else 1.0


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
        reference: Reference | None = None,
    ) -> None:
        self.policy, self.ranks, self.cost, self.reference = policy, ranks, cost, reference
        self.set_config(objective, optimizer, policy.temperature)
        self.need_entropy = need_entropy  # not where the sampler tells it: the full vocabulary costs a pass
        self.parameters = [p for p in policy.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(self.parameters, optimizer)

    def set_config(self, objective: ObjectiveConfig, optimizer: OptimizerConfig, temperature: float) -> None:
        """Goes on with other constants; what the optimizer was made with, but its learning rate, stays."""
        for policy in (self.policy, *((self.reference.policy,) if self.reference else ())):
            policy.temperature = temperature
        self.objective, self.loss, self.config = objective_of(objective), LOSSES[objective.loss_path], optimizer
        self.by_microbatch = objective.aggregation == "microbatch_mean"

    def clear_optimizer(self) -> None:
        """Lets the optimizer's moments start anew."""
        self.optimizer = make_optimizer(self.parameters, self.config)

    def pack(self, samples: Sequence[Sample]) -> Update:
        """This rank's share of one update. Every rank must be given the same samples."""
        num_tokens, num_responses = sum(s.response.num_sampled_tokens for s in samples), len(samples)
        if self.config.skip_zero_advantage and self._only_advantages_act:
            samples = [s for s in samples if s.advantage != 0]
        share = self.config.share_prompts and self.policy.can_share_prompts
        budget = self.config.tokens_per_microbatch
        plan = plan_microbatches(samples, self.ranks.count, budget, self.cost, share_prompts=share)
        mine = plan[self.ranks.rank]
        batches = [pack(chosen, share_prompts=share).to(self.ranks.device) for chosen in mine]
        if self.reference is not None and self.objective.kl_coef > 0:
            batches = self.reference.with_ref_logprobs(batches)
        if self.by_microbatch:
            return Update(batches, [verl_denominator(chosen, num_responses) for chosen in mine])
        return Update(batches, [max(1, num_tokens)] * len(batches))

    @property
    def _only_advantages_act(self) -> bool:
        """Whether a response without advantage has no gradient and is in nobody's mean."""
        return self.objective.kl_coef == 0 and self.objective.entropy_coef == 0 and not self.by_microbatch

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
        for i, (batch, denominator) in enumerate(zip(update.batches, update.denominators, strict=True)):
            accumulate(self.policy, i == len(update.batches) - 1, self.config.reduce_every_microbatch)
            output = self.loss(self.policy, batch, denominator, self.objective, self.need_entropy)
            output.loss.backward()
            trainer_logprobs: Tensor | None = output.logprobs if batch.old_logprobs is None else batch.old_logprobs
            if update.old_are_rollout:
                trainer_logprobs = output.logprobs if update.is_first else None
            sums.add(output, trainer_logprobs, batch.at_responses(batch.rollout_logprobs), self.objective)

    def apply(self, learning_rate: float) -> float:
        """Clips the accumulated gradient, updates the weights and clears it. Returns the norm before clipping.

        A norm that is not finite leaves the weights and the optimizer's moments as they are. Whether it is, the device
        decides: the host waits once, for the norm, when all is under way.
        """
        gradients = local_gradients(self.parameters)
        norm = gradient_norm(gradients, self.ranks.mesh)
        clip(gradients, norm, self.config.max_grad_norm)
        step_unless(~torch.isfinite(norm), self.optimizer, learning_rate)
        self.optimizer.zero_grad()
        return float(norm)
