"""The gradient of an update, and the update."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastgrpo.algorithm import TokenLoss
from fastgrpo.algorithm.objective_settings import chooses_tokens, objective_of
from fastgrpo.config import ObjectiveConfig, OptimizerConfig
from fastgrpo.models.packed_batch import PackedBatch
from fastgrpo.policy.aggregation import denominator, token_weights, verl_denominator
from fastgrpo.policy.losses import loss_of
from fastgrpo.policy.optimizer import clip, gradient_norm, local_gradients, make_optimizer, step_unless
from fastgrpo.policy.own_loss import OwnLoss
from fastgrpo.policy.packing import SequenceCost, pack, plan_microbatches
from fastgrpo.policy.policy import Policy
from fastgrpo.policy.reference import Reference
from fastgrpo.policy.router_loss import RouterLoss
from fastgrpo.policy.sharding import accumulate, reshard
from fastgrpo.policy.token_choice import ResponseStatistics, choose, keys_of, statistics_of, with_choice
from fastgrpo.policy.token_exchange import with_tokens
from fastgrpo.policy.token_masks import TokenKey
from fastgrpo.policy.token_sums import TokenSums
from fastgrpo.ranks import Ranks
from fastgrpo.types import Sample


@dataclass(frozen=True)
class Update:
    """This rank's micro-batches of one optimizer update."""

    batches: list[PackedBatch]
    denominators: list[int | float]  # of each, what its loss is divided by: one number for all ranks, mostly
    is_first: bool = True  # of its step: the weights are still those that sampled
    old_are_rollout: bool = False  # old_logprobs are the sampler's, not the trainer's own
    keys: Sequence[Sequence[TokenKey]] = ()  # of each batch's responses, where tokens are chosen
    num_tokens: int = 0  # response tokens of the whole update, over all ranks


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
        own_loss: TokenLoss | None = None,
        max_response_tokens: int = 0,
    ) -> None:
        self.policy, self.ranks, self.cost, self.reference = policy, ranks, cost, reference
        self.own_loss = None if own_loss is None else OwnLoss(own_loss, ranks.gather, is_alone=ranks.count == 1)
        self.set_config(objective, optimizer, policy.temperature, max_response_tokens)
        self.router_loss = RouterLoss(policy, objective.router_aux_coef, ranks) if objective.router_aux_coef else None
        self.need_entropy = need_entropy  # not where the sampler tells it: the full vocabulary costs a pass
        self.parameters = [p for p in policy.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(self.parameters, optimizer)

    def set_config(
        self, objective: ObjectiveConfig, optimizer: OptimizerConfig, temperature: float, max_response_tokens: int = 0
    ) -> None:
        """Goes on with other constants; what the optimizer was made with, but its learning rate, stays."""
        for policy in (self.policy, *((self.reference.policy,) if self.reference else ())):
            policy.temperature = temperature
        assert max_response_tokens or objective.aggregation != "sequence_mean_constant"
        self.settings, self.objective, self.config = objective, objective_of(objective), optimizer
        self.loss, self.max_response_tokens = loss_of(objective, self.own_loss), max_response_tokens

    def clear_optimizer(self) -> None:
        """Lets the optimizer's moments start anew."""
        self.optimizer = make_optimizer(self.parameters, self.config)

    def pack(self, samples: Sequence[Sample]) -> Update:
        """This rank's share of one update. Every rank must be given the same samples."""
        teaching = samples = [s for s in samples if s.teaches]
        if self.config.skip_zero_advantage and self._only_advantages_act:
            samples = [s for s in samples if s.advantage != 0]
        share = self.shares_prompts
        budget = self.config.tokens_per_microbatch
        plan = plan_microbatches(samples, self.ranks.count, budget, self.cost, share_prompts=share)
        mine = plan[self.ranks.rank]
        with_all = with_tokens(plan, self.ranks)
        batches = [self._packed(chosen, share).to(self.ranks.device) for chosen in with_all]
        if self.reference is not None and self.objective.kl_coef > 0:
            batches = self.reference.with_ref_logprobs(batches)
        keys = keys_of(mine, samples) if self.chooses_tokens else ()
        num_tokens = sum(s.response.num_sampled_tokens for s in teaching)
        return Update(batches, self._denominators(mine, teaching), keys=keys, num_tokens=num_tokens)

    def _packed(self, samples: Sequence[Sample], share: bool) -> PackedBatch:
        batch = pack(samples, share_prompts=share)
        return replace(batch, token_weights=token_weights(self.settings.aggregation, batch))

    def _denominators(self, mine: Sequence[Sequence[Sample]], update: Sequence[Sample]) -> list[int | float]:
        """Of each of this rank's micro-batches."""
        if self.settings.aggregation == "microbatch_mean":
            return [verl_denominator(chosen, len(update)) for chosen in mine]
        return [denominator(self.settings.aggregation, update, self.max_response_tokens)] * len(mine)

    @property
    def shares_prompts(self) -> bool:
        """Whether a prompt stands once for its responses."""
        return self.config.share_prompts and self.policy.can_share_prompts

    @property
    def chooses_tokens(self) -> bool:
        """Whether `with_chosen_tokens` has something to do."""
        return chooses_tokens(self.settings)

    @property
    def learns_by_advantages_alone(self) -> bool:
        """Whether an update of responses without advantage has no gradient."""
        settings = self.settings
        others = (settings.kl_coef, settings.entropy_coef, settings.router_aux_coef, settings.kl_cov)
        return not any(others) and self.own_loss is None

    @property
    def _only_advantages_act(self) -> bool:
        """Whether a response without advantage has no gradient, and no say in what others count."""
        alone = self.learns_by_advantages_alone and not self.chooses_tokens
        return alone and self.settings.aggregation != "microbatch_mean"

    @torch.no_grad()
    def with_chosen_tokens(self, update: Update, seed: int, step: int) -> Update:
        """The update with the tokens chosen that act in it, by the policy as it is and over all ranks, and with its old
        logprobs. In a step's first update these stay the current ones: the pass is one more than without a choice."""
        passes = [self.policy(batch, entropy=self.settings.top_entropy < 1) for batch in update.batches]
        reshard(self.policy)
        statistics = [statistics_of(*known) for known in zip(update.keys, update.batches, passes, strict=True)]
        everyone = self.ranks.gather([one for batch in statistics for one in batch], [ResponseStatistics])
        chosen = choose(everyone, self.settings, seed, step)
        batches = [
            with_choice(batch if update.is_first else replace(batch, old_logprobs=logprobs), keys, chosen)
            for batch, keys, (logprobs, _) in zip(update.batches, update.keys, passes, strict=True)
        ]
        return replace(update, batches=batches)

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
        shares = None if self.router_loss is None else self.router_loss.shares(update.batches)
        for i, (batch, count) in enumerate(zip(update.batches, update.denominators, strict=True)):
            accumulate(self.policy, i == len(update.batches) - 1, self.config.reduce_every_microbatch)
            if self.router_loss is None or shares is None:
                output = self.loss(self.policy, batch, count, self.objective, self.need_entropy)
                output.loss.backward()
            else:
                with self.router_loss.routers.watched() as logits:
                    output = self.loss(self.policy, batch, count, self.objective, self.need_entropy)
                (output.loss + self.router_loss.of(batch, logits, shares, update.num_tokens)).backward()
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
