"""Our objective and advantages against TRL's own, executed as published: the methods of a real GRPOTrainer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastgrpo.algorithm.advantages import ADVANTAGES, group_normalised
from fastgrpo.config import ObjectiveConfig
from tests.peers.off_policy import (
    CLIP,
    VOCABULARY,
    OffPolicyBatch,
    assert_as_exact_as,
    make_batch,
    make_old_logprobs,
    our_gradients,
    our_policy,
    tiny_model,
)
from tests.tiny import groups_of

trl = pytest.importorskip("trl")

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")]

GROUP_SIZE = 4


@pytest.fixture
def batch() -> OffPolicyBatch:
    return make_batch()


@pytest.fixture
def old_logprobs(batch: OffPolicyBatch) -> Tensor:
    return make_old_logprobs(batch)


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., object]:
    return lambda **settings: grpo_trainer(tmp_path, **settings)


def grpo_trainer(folder: Path, reward: Callable = lambda completions, **_: [0.0] * len(completions), **settings):
    """JustRL's constants in TRL's names: `delta` caps the ratio, which is dual clip where the advantage is negative."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w1"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    args = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "gradient_checkpointing": False,
        "per_device_train_batch_size": 8,
        "num_generations": GROUP_SIZE,
        "max_completion_length": 5,
        "loss_type": "dapo",
        "beta": 0.0,
        "epsilon": CLIP["clip_low"],
        "epsilon_high": CLIP["clip_high"],
        "delta": CLIP["dual_clip"],
    }
    trainer = trl.GRPOTrainer(
        model=tiny_model(torch.float32, "sdpa"),
        reward_funcs=reward,
        args=trl.GRPOConfig(**{**args, **settings}),
        train_dataset=Dataset.from_list([{"prompt": "w5 w6 w7"}] * 8),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w0", pad_token="w0"),
    )
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    trainer.model.train()
    return trainer


def trl_inputs(batch: OffPolicyBatch, old_logprobs: Tensor, num_items: int | None = None) -> dict[str, Tensor]:
    """Prompts padded on the left, completions on the right, as TRL lays them out."""
    longest = max(len(p) for p in batch.prompts)
    prompts = torch.zeros(len(batch.prompts), longest, dtype=torch.int64)
    prompt_mask, completions = torch.zeros_like(prompts), torch.zeros(batch.mask.shape, dtype=torch.int64)
    for i, (prompt, response) in enumerate(zip(batch.prompts, batch.responses, strict=True)):
        prompts[i, longest - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
        prompt_mask[i, longest - len(prompt) :] = 1
        completions[i, : len(response)] = torch.from_numpy(response.astype(np.int64))
    return {
        "prompt_ids": prompts,
        "prompt_mask": prompt_mask,
        "completion_ids": completions,
        "completion_mask": batch.mask.long(),
        "advantages": batch.advantages.to(old_logprobs.dtype),
        "old_per_token_logps": old_logprobs,
        "num_items_in_batch": torch.tensor(num_items or batch.num_tokens),
    }


def loss_and_gradient_of_trl(
    trainer, batch: OffPolicyBatch, old_logprobs: Tensor, num_items: int | None = None
) -> tuple[Tensor, Tensor]:
    """TRL's `_compute_loss` with the model's logprobs given, so that all of it runs in float64."""
    logprobs = (old_logprobs + batch.log_ratio).requires_grad_()
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (logprobs, torch.zeros_like(logprobs), None)
    loss = trainer._compute_loss(trainer.model, trl_inputs(batch, old_logprobs, num_items))
    loss.backward()
    return loss.detach(), logprobs.grad


def test_loss_and_gradient_are_trls(make_trainer, batch: OffPolicyBatch, old_logprobs: Tensor):
    loss, gradient = loss_and_gradient_of_trl(make_trainer(), batch, old_logprobs)
    our_loss, our_gradient = batch.our_loss_and_gradient(old_logprobs)
    torch.testing.assert_close(our_loss, loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(our_gradient, gradient, rtol=1e-12, atol=1e-15)


def test_without_delta_trl_has_no_dual_clip(make_trainer, batch: OffPolicyBatch, old_logprobs: Tensor):
    _, gradient = loss_and_gradient_of_trl(make_trainer(delta=None), batch, old_logprobs)
    _, ours = batch.our_loss_and_gradient(old_logprobs)
    far_up = batch.mask & (batch.advantages[:, None] < 0) & (batch.log_ratio.exp() > CLIP["dual_clip"])
    assert far_up.any() and (gradient[far_up] != 0).all() and (ours[far_up] == 0).all()
    torch.testing.assert_close(ours[~far_up], gradient[~far_up], rtol=1e-12, atol=1e-15)


def test_a_delta_below_the_upper_bound_would_clip_good_tokens_too(
    make_trainer, batch: OffPolicyBatch, old_logprobs: Tensor
):
    """`delta` knows no sign: only above 1 + epsilon_high is it dual clip alone."""
    _, gradient = loss_and_gradient_of_trl(make_trainer(delta=1.1), batch, old_logprobs)
    _, ours = batch.our_loss_and_gradient(old_logprobs)
    ratio = batch.log_ratio.exp()
    between = batch.mask & (batch.advantages[:, None] > 0) & (ratio > 1.1) & (ratio < 1 + CLIP["clip_high"])
    assert between.any() and (gradient[between] == 0).all() and (ours[between] != 0).all()


def test_where_the_ratio_overflows_trls_gradient_is_nan_and_ours_is_not(make_trainer):
    """exp(100) is infinite in float32, and 0 * inf is NaN in the backward pass: hence our bound of 20, verl's too."""
    batch = make_batch()
    batch.log_ratio[0, 0] = 100.0
    old = make_old_logprobs(batch)
    single = OffPolicyBatch(
        batch.prompts, batch.responses, batch.advantages.float(), batch.log_ratio.float(), batch.mask
    )
    _, gradient = loss_and_gradient_of_trl(make_trainer(), single, old.float())
    _, ours = single.our_loss_and_gradient(old.float())
    assert gradient[0, 0].isnan() and torch.isfinite(ours).all()


MICRO_BATCHES = (slice(0, 3), slice(3, 8))


def test_accumulated_micro_batches_sum_to_our_loss(make_trainer, batch: OffPolicyBatch, old_logprobs: Tensor):
    """One update per generation: TRL's denominator is the update's tokens, as ours is."""
    trainer = make_trainer(gradient_accumulation_steps=2, steps_per_generation=2, per_device_train_batch_size=4)
    parts = [
        loss_and_gradient_of_trl(trainer, batch.rows(rows), old_logprobs[rows], num_items=batch.num_tokens)[0]
        for rows in MICRO_BATCHES
    ]
    torch.testing.assert_close(sum(parts), batch.our_loss_and_gradient(old_logprobs)[0], rtol=1e-12, atol=0)


def test_with_several_updates_trl_divides_by_their_mean_tokens_and_differs(
    make_trainer, batch: OffPolicyBatch, old_logprobs: Tensor
):
    """`num_items_in_batch` counts the generation, and each update takes an equal part of it, whatever it holds."""
    trainer = make_trainer(gradient_accumulation_steps=1, steps_per_generation=2, per_device_train_batch_size=4)
    for rows in MICRO_BATCHES:  # each an update of its own
        update, old = batch.rows(rows), old_logprobs[rows]
        assert update.num_tokens * 2 != batch.num_tokens
        theirs, _ = loss_and_gradient_of_trl(trainer, update, old, num_items=batch.num_tokens)
        ours, _ = update.our_loss_and_gradient(old)
        torch.testing.assert_close(theirs * batch.num_tokens / 2, ours * update.num_tokens, rtol=1e-12, atol=0)
        told, _ = loss_and_gradient_of_trl(trainer, update, old, num_items=2 * update.num_tokens)
        torch.testing.assert_close(told, ours, rtol=1e-12, atol=0)


@pytest.mark.parametrize("num_microbatches", [1, 2])
def test_weight_gradients_are_trls(make_trainer, batch: OffPolicyBatch, num_microbatches: int):
    """Through both models, heads and losses in float32, against float64."""
    with torch.no_grad():
        current, _ = our_policy(torch.float64)(batch.packed(torch.zeros(0)))
    old = current - batch.log_ratio[batch.mask]
    padded = torch.zeros(batch.mask.shape, dtype=torch.float64).masked_scatter(batch.mask, old).float()
    trainer = make_trainer(
        gradient_accumulation_steps=num_microbatches,
        steps_per_generation=num_microbatches,
        per_device_train_batch_size=8 // num_microbatches,
    )
    chosen = [slice(0, 8)] if num_microbatches == 1 else list(MICRO_BATCHES)
    losses = []
    for rows in chosen:
        inputs = trl_inputs(batch.rows(rows), padded[rows], num_items=batch.num_tokens)
        loss = trainer._compute_loss(trainer.model, inputs)
        loss.backward()
        losses.append(loss.detach().double())
    theirs = {name: p.grad for name, p in trainer.model.named_parameters()}
    whole = [batch.packed(old)]
    exact_loss, exact = our_gradients(our_policy(torch.float64), whole, batch.num_tokens)
    packed = [batch.rows(rows).packed(o) for rows, o in zip(chosen, split_by_rows(batch, old, chosen), strict=True)]
    our_loss, ours = our_gradients(our_policy(torch.float32), packed, batch.num_tokens)
    torch.testing.assert_close(sum(losses), exact_loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(our_loss, exact_loss, rtol=1e-5, atol=0)
    assert_as_exact_as(theirs, ours, exact)


def split_by_rows(batch: OffPolicyBatch, flat: Tensor, chosen: list[slice]) -> list[Tensor]:
    parts = flat.split([len(r) for r in batch.responses])
    return [torch.cat(parts[rows]) for rows in chosen]


def test_weights_stay_together_over_four_updates_of_one_step(make_trainer, batch: OffPolicyBatch):
    """Old logprobs from before the first update, plain SGD with a rate that takes ratios past their bounds."""
    policy, trainer = our_policy(torch.float32), make_trainer()
    with torch.no_grad():
        old, _ = policy(batch.packed(torch.zeros(0)))
    padded = torch.zeros(batch.mask.shape).masked_scatter(batch.mask, old)
    start = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    for _ in range(4):
        our_gradients(policy, [batch.packed(old)], batch.num_tokens)
        trainer.model.zero_grad()
        trainer._compute_loss(trainer.model, trl_inputs(batch, padded)).backward()
        for model in (policy.model, trainer.model):
            torch.optim.SGD(model.parameters(), lr=0.05).step()
    with torch.no_grad():
        ratio = (policy(batch.packed(torch.zeros(0)))[0] - old).exp()
    assert (ratio > 1 + CLIP["clip_high"]).any() and (ratio < 1 - CLIP["clip_low"]).any()
    theirs = dict(trainer.model.named_parameters())
    for name, ours in policy.model.named_parameters():
        moved = float((ours.detach() - start[name]).abs().max())
        assert float((ours - theirs[name]).detach().abs().max()) < 1e-4 * moved, name


def test_advantages_are_trls_up_to_its_larger_constant(make_trainer):
    """TRL divides by std + 1e-4, we by std + 1e-6 as verl does; groups of equal rewards are 0 in both."""
    rng = np.random.default_rng(0)
    rewards = np.concatenate([rng.choice([-1.0, 1.0], 4 * 5), np.full(4, 1.0), np.full(4, -1.0), rng.normal(size=4)])
    trainer = make_trainer(
        reward=lambda completions, **_: rewards.tolist(), per_device_train_batch_size=len(rewards)
    )  # fmt: skip
    prompts = [{"prompt": f"w5 w{i // GROUP_SIZE + 6}"} for i in range(len(rewards))]
    theirs = trainer._generate_and_score_completions(prompts)["advantages"].double()
    std = torch.from_numpy(rewards).view(-1, GROUP_SIZE).std(dim=1).repeat_interleave(GROUP_SIZE)
    ours = torch.from_numpy(group_normalised(rewards, groups_of(GROUP_SIZE))).double()
    torch.testing.assert_close(ours * (std + 1e-6) / (std + 1e-4), theirs, rtol=1e-5, atol=1e-6)
    assert (ours[4 * 5 : 4 * 7] == 0).all() and (theirs[4 * 5 : 4 * 7] == 0).all()


LONGEST = 14
PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # our settings, TRL's
    "grpo": ({"loss": "grpo", "aggregation": "sequence_mean"}, {"loss_type": "grpo"}),
    "dr_grpo": ({"loss": "dr_grpo"}, {"loss_type": "dr_grpo", "epsilon_high": 0.2, "delta": None}),
    "dapo": ({"loss": "dapo"}, {"loss_type": "dapo", "delta": None}),
    "bnpo": ({"loss": "dapo", "aggregation": "microbatch_mean"}, {"loss_type": "bnpo", "delta": None}),
    "gspo": ({"loss": "gspo"}, {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-4,
                                "epsilon_high": 4e-4, "delta": None}),
    "cispo": ({"loss": "cispo"}, {"loss_type": "cispo", "epsilon_high": 5.0, "delta": None}),
    # TRL rounds temperatures to float32, which holds this one exactly.
    "sapo": ({"loss": "sapo", "sapo_negative": 1.0625},
             {"loss_type": "sapo", "sapo_temperature_neg": 1.0625, "delta": None}),
    "luspo": ({"loss": "luspo"}, {"loss_type": "luspo", "importance_sampling_level": "sequence", "epsilon": 2e-3,
                                  "epsilon_high": 2.5e-3, "delta": None}),
    "top entropy": ({"loss": "dapo", "top_entropy": 0.2},
                    {"loss_type": "dapo", "top_entropy_quantile": 0.2, "delta": None}),
}  # fmt: skip


@pytest.mark.parametrize("drift", [1.0, 1e-3])
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_losses_are_trls(make_trainer, batch: OffPolicyBatch, old_logprobs: Tensor, name: str, drift: float):
    ours, theirs = PUBLISHED[name]
    trainer = make_trainer(max_completion_length=LONGEST, **theirs)
    moved = batch.drifted(drift, old_logprobs)
    logprobs = (old_logprobs + moved.log_ratio).requires_grad_()
    entropies = torch.zeros_like(logprobs).masked_scatter(batch.mask, batch.entropies().float().double())
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (logprobs, entropies, None)
    loss = trainer._compute_loss(trainer.model, trl_inputs(moved, old_logprobs))
    loss.backward()
    our_loss, our_gradient = moved.published(ObjectiveConfig(**ours), old_logprobs, LONGEST)
    torch.testing.assert_close(our_loss, loss.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(our_gradient, logprobs.grad, rtol=1e-9, atol=1e-14)
    assert 0 < (our_gradient != 0).sum() <= batch.num_tokens


@pytest.mark.parametrize("scale_rewards, advantage", [("group", "group_normalised"), ("none", "group_centred")])
def test_published_advantages_are_trls(make_trainer, scale_rewards: str, advantage: str):
    rewards = np.random.default_rng(1).normal(size=24)
    trainer = make_trainer(
        reward=lambda completions, **_: rewards.tolist(), per_device_train_batch_size=24, scale_rewards=scale_rewards
    )
    prompts = [{"prompt": f"w5 w{i // GROUP_SIZE + 6}"} for i in range(24)]
    theirs = trainer._generate_and_score_completions(prompts)["advantages"].double()
    std = torch.from_numpy(rewards).view(-1, GROUP_SIZE).std(dim=1).repeat_interleave(GROUP_SIZE)
    ours = torch.from_numpy(ADVANTAGES[advantage](rewards, groups_of(GROUP_SIZE))).double()
    constants = (std + 1e-6) / (std + 1e-4) if scale_rewards == "group" else 1.0
    torch.testing.assert_close(ours * constants, theirs, rtol=1e-5, atol=1e-6)
