"""Our objective and advantages against verl's own, executed as published."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fastgrpo.algorithm.advantages import group_normalised
from tests.peers.off_policy import (
    CLIP,
    OffPolicyBatch,
    assert_as_exact_as,
    make_batch,
    make_old_logprobs,
    our_gradients,
    our_policy,
    tiny_model,
)
from tests.tiny import groups_of

core_algos = pytest.importorskip("verl.trainer.ppo.core_algos")
torch_functional = pytest.importorskip("verl.utils.torch_functional")
config = pytest.importorskip("verl.workers.config")

pytestmark = pytest.mark.peers


@pytest.fixture
def batch() -> OffPolicyBatch:
    return make_batch()


@pytest.fixture
def old_logprobs(batch: OffPolicyBatch) -> Tensor:
    return make_old_logprobs(batch)


def actor_config(num_loss_tokens: int | None = None) -> object:
    """verl's own dataclass with JustRL's constants. Without a token count it takes the mean of the rows it is given."""
    return config.ActorConfig(
        strategy="fsdp",
        rollout_n=8,
        ppo_micro_batch_size_per_gpu=1,
        clip_ratio_low=CLIP["clip_low"],
        clip_ratio_high=CLIP["clip_high"],
        clip_ratio_c=CLIP["dual_clip"],
        global_batch_info={} if num_loss_tokens is None else {"batch_num_tokens": num_loss_tokens, "dp_size": 1},
    )


def verl_loss(logprobs: Tensor, old: Tensor, batch: OffPolicyBatch, num_loss_tokens: int | None = None) -> Tensor:
    loss, _ = core_algos.compute_policy_loss_vanilla(
        old_log_prob=old,
        log_prob=logprobs,
        advantages=batch.advantages[:, None].expand_as(batch.mask).to(logprobs.dtype),
        response_mask=batch.mask.to(logprobs.dtype),
        loss_agg_mode="token-mean",
        config=actor_config(num_loss_tokens),
    )
    return loss


def test_loss_and_gradient_are_verls(batch: OffPolicyBatch, old_logprobs: Tensor):
    logprobs = (old_logprobs + batch.log_ratio).requires_grad_()
    loss = verl_loss(logprobs, old_logprobs, batch)
    loss.backward()
    ours, gradient = batch.our_loss_and_gradient(old_logprobs)
    torch.testing.assert_close(ours, loss.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, logprobs.grad, rtol=1e-12, atol=1e-15)


def test_the_older_function_agrees_too(batch: OffPolicyBatch, old_logprobs: Tensor):
    loss, *_ = core_algos.compute_policy_loss(
        old_logprobs,
        old_logprobs + batch.log_ratio,
        batch.advantages[:, None].expand_as(batch.mask),
        batch.mask.double(),
        cliprange_low=CLIP["clip_low"],
        cliprange_high=CLIP["clip_high"],
        clip_ratio_c=CLIP["dual_clip"],
    )
    torch.testing.assert_close(batch.our_loss_and_gradient(old_logprobs)[0], loss, rtol=1e-12, atol=0)


def test_a_log_ratio_beyond_twenty_is_cut_alike(batch: OffPolicyBatch, old_logprobs: Tensor):
    far = OffPolicyBatch(batch.prompts, batch.responses, batch.advantages, batch.log_ratio * 30, batch.mask)
    logprobs = (old_logprobs + far.log_ratio).requires_grad_()
    loss = verl_loss(logprobs, old_logprobs, far)
    loss.backward()
    ours, gradient = far.our_loss_and_gradient(old_logprobs)
    torch.testing.assert_close(ours, loss.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, logprobs.grad, rtol=1e-12, atol=1e-15)


MICRO_BATCHES = (slice(0, 3), slice(3, 8))


def test_micro_batches_sum_to_our_loss_when_verl_is_told_the_tokens_of_the_update(
    batch: OffPolicyBatch, old_logprobs: Tensor
):
    parts = [
        verl_loss(
            (old_logprobs + batch.log_ratio)[rows],
            old_logprobs[rows],
            batch.rows(rows),
            num_loss_tokens=batch.num_tokens,
        )
        for rows in MICRO_BATCHES
    ]
    torch.testing.assert_close(batch.our_loss_and_gradient(old_logprobs)[0], sum(parts), rtol=1e-12, atol=0)


def test_without_that_verl_weights_micro_batches_equally_and_differs(batch: OffPolicyBatch, old_logprobs: Tensor):
    """What verl up to 0.4 did, and JustRL with it: the mean over micro-batches of their token means."""
    counts = [batch.rows(rows).num_tokens for rows in MICRO_BATCHES]
    assert counts[0] != counts[1]
    parts = [
        verl_loss((old_logprobs + batch.log_ratio)[rows], old_logprobs[rows], batch.rows(rows))
        for rows in MICRO_BATCHES
    ]
    ours = batch.our_loss_and_gradient(old_logprobs)[0]
    assert abs(float(sum(parts) / 2 - ours)) > 1e-3 * abs(float(ours))
    weighted = sum(part * count for part, count in zip(parts, counts, strict=True)) / sum(counts)
    torch.testing.assert_close(weighted, ours, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["compute_grpo_outcome_advantage", "compute_grpo_vectorized_outcome_advantage"])
def test_advantages_are_verls(name: str):
    rng = np.random.default_rng(0)
    rewards = np.concatenate(
        [rng.choice([-1.0, 1.0], size=8 * 50), np.full(8, 1.0), np.full(8, -1.0), np.eye(8)[0] * 2 - 1]
    ).astype(np.float32)
    mask = torch.ones(len(rewards), 3)
    mask[::2, 2] = 0
    token_rewards = torch.zeros(len(rewards), 3)
    token_rewards[:, 1] = torch.from_numpy(rewards)
    theirs, _ = getattr(core_algos, name)(token_rewards, mask, np.repeat(np.arange(len(rewards) // 8), 8))
    ours = torch.from_numpy(group_normalised(rewards, groups_of(8)))
    torch.testing.assert_close(ours[:, None] * mask, theirs, rtol=1e-6, atol=1e-7)
    assert (ours[8 * 50 : 8 * 52] == 0).all()


def test_equal_rewards_that_float32_cannot_average_exactly_are_zero_only_here():
    rewards = np.full(7, 0.1, dtype=np.float32)
    theirs, _ = core_algos.compute_grpo_outcome_advantage(
        torch.from_numpy(rewards)[:, None].clone(), torch.ones(7, 1), np.zeros(7, dtype=int)
    )
    assert (group_normalised(rewards, groups_of(7)) == 0).all()
    assert 0 < float(theirs.abs().max()) < 0.05


def verl_gradients(dtype: torch.dtype, batch: OffPolicyBatch, old: list[Tensor]) -> dict[str, Tensor]:
    """One padded row at a time through transformers and verl's log-softmax, gradients accumulated."""
    model = tiny_model(dtype, "sdpa")
    for i, (prompt, response) in enumerate(zip(batch.prompts, batch.responses, strict=True)):
        ids = torch.from_numpy(np.concatenate([prompt, response]).astype(np.int64))[None]
        logits = model(ids).logits[:, len(prompt) - 1 : -1]
        logprobs = torch_functional.logprobs_from_logits(logits, ids[:, len(prompt) :])
        row = batch.rows(slice(i, i + 1))
        row = OffPolicyBatch(row.prompts, row.responses, row.advantages, row.log_ratio, row.mask[:, : len(response)])
        verl_loss(logprobs, old[i][None].to(dtype), row, num_loss_tokens=batch.num_tokens).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def test_weight_gradients_are_verls(batch: OffPolicyBatch):
    lengths = [len(r) for r in batch.responses]
    with torch.no_grad():
        current, _ = our_policy(torch.float64)(batch.packed(torch.zeros(0)))
    old = current - batch.log_ratio[batch.mask]
    packed = batch.packed(old)
    _, exact = our_gradients(our_policy(torch.float64), [packed], batch.num_tokens)
    _, ours = our_gradients(our_policy(torch.float32), [packed], batch.num_tokens)
    theirs64 = verl_gradients(torch.float64, batch, list(old.split(lengths)))
    for name, gradient in exact.items():
        assert float((gradient - theirs64[name]).abs().max()) <= 1e-6 * float(gradient.abs().max()), name
    assert_as_exact_as(verl_gradients(torch.float32, batch, list(old.split(lengths))), ours, exact)
