"""Our objective and advantages against verl's own, executed as published."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastgrpo.algorithm.advantages import ADVANTAGES, group_normalised
from fastgrpo.config import ObjectiveConfig
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


LONGEST = 14
NORM = {"loss_agg_mode": "seq-mean-token-sum-norm", "loss_scale_factor": LONGEST}
PUBLISHED: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {  # verl's name, our settings, verl's
    "grpo": ("vanilla", {"loss": "grpo"}, {"high": 0.28, "clip_ratio_c": 10.0}),
    "dr_grpo": ("vanilla", {"loss": "dr_grpo"}, {"clip_ratio_c": 1e30, **NORM}),
    "dapo": ("vanilla", {"loss": "dapo"}, {"high": 0.28, "clip_ratio_c": 1e30}),
    "gspo": ("gspo", {"loss": "gspo"}, {"low": 3e-4, "high": 4e-4, "loss_agg_mode": "seq-mean-token-mean"}),
    "gspo of tokens": ("gspo", {"loss": "gspo", "aggregation": "token_mean"}, {"low": 3e-4, "high": 4e-4}),
    "luspo": ("gspo", {"loss": "luspo"}, {"low": 2e-3, "high": 2.5e-3, "loss_agg_mode": "seq-mean-token-sum"}),
    "cispo": ("cispo", {"loss": "cispo"}, {"low": 1.0, "high": 4.0}),
    "gmpo": ("geo_mean", {"loss": "gmpo"}, {"low": 0.4, "high": 0.4}),
    "sapo": ("sapo", {"loss": "sapo"}, {}),
    "dppo": ("dppo_tv", {"loss": "dppo"}, {"low": 0.15, "high": 0.15, "clip_ratio_c": 1e30, **NORM}),
    "dppo with a cap": ("dppo_tv", {"loss": "dppo", "dual_clip": 2.0},
                        {"low": 0.15, "high": 0.15, "clip_ratio_c": 2.0, **NORM}),
    "dppo by KL": ("dppo_kl", {"loss": "dppo", "surrogate": "dppo_kl", "clip_low": 0.05, "clip_high": 0.05},
                   {"low": 0.05, "high": 0.05, "clip_ratio_c": 1e30, **NORM}),
    "kl_cov": ("kl_cov", {"kl_cov": 0.1, "kl_cov_coef": 0.7}, {"kl_cov_ratio": 0.1, "ppo_kl_coef": 0.7}),
}  # fmt: skip


def published_by_verl(
    name: str, logprobs: Tensor, old: Tensor, batch: OffPolicyBatch, *, low: float = 0.2, high: float = 0.2,
    loss_agg_mode: str = "token-mean", clip_ratio_c: float = 3.0, **settings: Any,
) -> Tensor:  # fmt: skip
    scale = {"loss_scale_factor": settings.pop("loss_scale_factor")} if "loss_scale_factor" in settings else {}
    actor = config.ActorConfig(
        strategy="fsdp", rollout_n=8, ppo_micro_batch_size_per_gpu=1, clip_ratio_low=low, clip_ratio_high=high,
        clip_ratio_c=clip_ratio_c, global_batch_info=scale, policy_loss=config.PolicyLossConfig(**settings),
    )  # fmt: skip
    loss, _ = core_algos.get_policy_loss_fn(name)(
        old_log_prob=old,
        log_prob=logprobs,
        advantages=batch.advantages[:, None].expand_as(batch.mask).to(logprobs.dtype).clone(),
        response_mask=batch.mask.to(logprobs.dtype),
        loss_agg_mode=loss_agg_mode,
        config=actor,
    )
    return loss


@pytest.mark.parametrize("drift", [1.0, 0.1, 1e-3])
@pytest.mark.parametrize("case", PUBLISHED)
def test_published_losses_are_verls(batch: OffPolicyBatch, old_logprobs: Tensor, case: str, drift: float):
    name, ours, theirs = PUBLISHED[case]
    moved = batch.drifted(drift, old_logprobs)
    logprobs = (old_logprobs + moved.log_ratio).requires_grad_()
    loss = published_by_verl(name, logprobs, old_logprobs, moved, **theirs)
    loss.backward()
    our_loss, our_gradient = moved.published(ObjectiveConfig(**ours), old_logprobs, LONGEST)
    # verl divides by lengths + 1e-8 and adds as much to dppo_kl's probabilities.
    torch.testing.assert_close(our_loss, loss.detach(), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(our_gradient, logprobs.grad, rtol=1e-7, atol=1e-9)
    assert (our_gradient != 0).any()


def test_clip_cov_leaves_out_verls_tokens_where_it_is_the_policy_before_the_update(
    batch: OffPolicyBatch, old_logprobs: Tensor
):
    """Where old and current logprobs are one, and the share takes all within the bounds: no draw, no clipped token."""
    moved = batch.drifted(0.0, old_logprobs)
    logprobs = old_logprobs.clone().requires_grad_()
    bounds = {"clip_cov_ratio": 0.9, "clip_cov_lb": 0.3, "clip_cov_ub": 1.5}
    loss = published_by_verl("clip_cov", logprobs, old_logprobs, moved, **bounds)
    loss.backward()
    ours = ObjectiveConfig(loss="rloo", clip_cov=0.9, clip_cov_low=0.3, clip_cov_high=1.5)
    our_loss, our_gradient = moved.published(ours, old_logprobs)
    torch.testing.assert_close(our_loss, loss.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(our_gradient, logprobs.grad, rtol=1e-9, atol=1e-14)
    acts = (batch.advantages[:, None] != 0) & batch.mask
    assert 0 < (our_gradient[acts] == 0).sum() < acts.sum()


def outcome_rewards(rewards: np.ndarray, lengths: np.ndarray) -> tuple[Tensor, Tensor]:
    """Rewards at the last tokens, and the response mask."""
    mask = (torch.arange(int(lengths.max())) < torch.from_numpy(lengths)[:, None]).double()
    at_end = torch.zeros_like(mask)
    at_end[torch.arange(len(rewards)), torch.from_numpy(lengths) - 1] = torch.from_numpy(rewards)
    return at_end, mask


def verl_advantages(name: str, rewards: np.ndarray, lengths: np.ndarray, **settings: Any) -> Tensor:  # [N]
    at_end, mask = outcome_rewards(rewards, lengths)
    function = core_algos.get_adv_estimator_fn(name)
    index = np.repeat(np.arange(len(rewards) // 4), 4)
    advantages, _ = function(
        token_level_rewards=at_end, response_mask=mask, index=index, config=config_of_algorithm(), **settings
    )
    return advantages[:, 0]


def config_of_algorithm() -> Any:
    from verl.trainer.config import AlgoConfig

    return AlgoConfig(gamma=1.0)


@pytest.mark.parametrize(
    "name, theirs, settings",
    [
        ("group_normalised", "grpo", {}),
        ("group_centred", "grpo", {"norm_adv_by_std_in_grpo": False}),
        ("leave_one_out", "rloo", {}),
        ("leave_one_out", "rloo_vectorized", {}),
    ],
)
def test_published_advantages_are_verls(name: str, theirs: str, settings: dict[str, Any]):
    random = np.random.default_rng(2)
    rewards, lengths = random.normal(size=40), random.integers(1, 9, 40)
    ours = torch.from_numpy(ADVANTAGES[name](rewards, groups_of(4, lengths))).double()
    torch.testing.assert_close(ours, verl_advantages(theirs, rewards, lengths, **settings), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "name, theirs", [("batch_whitened", "reinforce_plus_plus"), ("batch_normalised", "reinforce_plus_plus_baseline")]
)
def test_advantages_of_reinforce_pp_are_verls_up_to_their_constants(name: str, theirs: str):
    """verl: Bessel's correction over the tokens and 1e-8 under the root. Ours: AReaL's 1e-5, and NeMo-RL's floor."""
    random = np.random.default_rng(2)
    rewards, lengths = random.normal(size=40), random.integers(1, 9, 40)
    found = torch.from_numpy(ADVANTAGES[name](rewards, groups_of(4, lengths))).double()
    centred = rewards - (rewards.reshape(10, 4).mean(1).repeat(4) if name == "batch_normalised" else 0.0)
    variance, count = np.var(np.repeat(centred, lengths)), lengths.sum()
    ours = np.sqrt(variance) + (1e-5 if name == "batch_whitened" else 0.0)
    constants = ours / np.sqrt(variance * count / (count - 1) + 1e-8)
    torch.testing.assert_close(found * constants, verl_advantages(theirs, rewards, lengths), rtol=1e-5, atol=1e-6)
