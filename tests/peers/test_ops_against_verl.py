"""Our ops against verl's registered losses, advantages, divergences, sampler correction and heads, as published."""

from collections.abc import Callable
from dataclasses import replace
from math import inf

import numpy as np
import pytest
import torch
from fastgrpo_kernels import (
    Objective,
    cispo,
    dppo,
    gmpo,
    group_advantages,
    grpo_loss,
    linear_logprobs,
    logprobs_from_logits,
    reference,
    sapo,
)
from torch import Tensor

from tests.peers.op_cases import (
    CLIP,
    DUAL_CLIP,
    RATIO_CAP,
    SAMPLER,
    OffPolicy,
    Result,
    assert_as_exact,
    assert_differ,
    assert_every_branch_occurs,
    assert_same,
    differentiated,
    head,
    make_case,
    ours,
    weights_of,
)

core_algos = pytest.importorskip("verl.trainer.ppo.core_algos")
rollout_corr = pytest.importorskip("verl.trainer.ppo.rollout_corr_helper")
torch_functional = pytest.importorskip("verl.utils.torch_functional")
experimental = pytest.importorskip("verl.utils.experimental.torch_functional")
config = pytest.importorskip("verl.workers.config")

pytestmark = pytest.mark.peers

HORIZON = 12
MEANS = {
    "token-mean": "token_mean",
    "seq-mean-token-mean": "response_mean",
    "seq-mean-token-sum": "response_sum",
    "seq-mean-token-sum-norm": "constant",
}


@pytest.fixture
def case() -> OffPolicy:
    return make_case()


def our_weights(case: OffPolicy, mode: str) -> Tensor | None:
    """verl counts the responses that have a token."""
    return weights_of(case, MEANS[mode], int((case.lengths > 0).sum()), HORIZON)


def actor_config(**settings: float) -> object:
    constants = {
        "clip_ratio_low": CLIP["clip_low"],
        "clip_ratio_high": CLIP["clip_high"],
        "clip_ratio_c": DUAL_CLIP,
        **settings,
    }
    return config.ActorConfig(strategy="fsdp", rollout_n=8, ppo_micro_batch_size_per_gpu=1, **constants)


def differentiated_loss(case: OffPolicy, function: Callable[[Tensor], Tensor]) -> Result:
    logprobs = case.logprobs.clone().requires_grad_()
    loss = function(logprobs)
    loss.backward()
    return Result(loss.detach(), logprobs.grad)


def verls(
    case: OffPolicy,
    name: str = "vanilla",
    mode: str = "token-mean",
    weights: Tensor | None = None,  # [N, L] of the sampler
    response_mask: Tensor | None = None,  # [N, L]
    **settings: float,
) -> Result:
    """A registered policy loss, all of it in float64."""
    return differentiated_loss(
        case,
        lambda logprobs: core_algos.get_policy_loss_fn(name)(
            old_log_prob=case.old_logprobs,
            log_prob=logprobs,
            advantages=case.of_tokens(case.advantages),
            response_mask=case.mask.double() if response_mask is None else response_mask,
            loss_agg_mode=mode,
            config=actor_config(**settings),
            rollout_is_weights=weights,
        )[0],
    )


def tolerance(mode: str) -> float:
    """verl adds 1e-8 to the length of a response."""
    return 2e-8 if mode == "seq-mean-token-mean" else 1e-12


LOSSES = {
    "vanilla": (Objective(**CLIP, dual_clip=DUAL_CLIP), {}),
    "gspo": (Objective(**CLIP, ratio="sequence"), {}),
    "cispo": (cispo(RATIO_CAP), {"clip_ratio_low": 1.0, "clip_ratio_high": RATIO_CAP - 1}),
}


@pytest.mark.parametrize("mode", list(MEANS))
@pytest.mark.parametrize("name", list(LOSSES))
def test_loss_and_gradient_are_verls(case: OffPolicy, name: str, mode: str):
    assert_every_branch_occurs(case, sequence=name == "gspo")
    objective, settings = LOSSES[name]
    assert_same(ours(case, objective, our_weights(case, mode)), verls(case, name, mode, **settings), tolerance(mode))


def test_sapo_is_verls(case: OffPolicy):
    """Whatever the mode, verl takes the mean of each response's mean."""
    objective, weights = sapo(1.3, 2.1), our_weights(case, "seq-mean-token-mean")
    for mode in MEANS:
        theirs = verls(case, "sapo", mode, tau_pos=1.3, tau_neg=2.1)
        assert_same(ours(case, objective, weights), theirs, tolerance("seq-mean-token-mean"))


def with_probabilities(case: OffPolicy) -> OffPolicy:
    """None above 1, as in `case` some are: a divergence of probabilities sees that."""
    return replace(case, logprobs=case.logprobs - 4, old_logprobs=case.old_logprobs - 4)


@pytest.mark.parametrize("mode", list(MEANS))
@pytest.mark.parametrize(("divergence", "low", "high"), [("tv", 0.002, 0.004), ("kl", 0.001, 0.002)])
def test_dppo_is_verls(case: OffPolicy, divergence: str, low: float, high: float, mode: str):
    case = with_probabilities(case)
    assert (case.logprobs < 0).all()
    objective = replace(dppo(divergence), clip_low=low, clip_high=high, dual_clip=DUAL_CLIP)
    theirs = verls(case, f"dppo_{divergence}", mode, clip_ratio_low=low, clip_ratio_high=high)
    assert_same(ours(case, objective, our_weights(case, mode)), theirs, tolerance(mode))
    advantages = case.of_tokens(case.advantages)
    for masked in (theirs.by_logprobs == 0, theirs.by_logprobs != 0):
        assert all((masked & case.mask & sign).any() for sign in (advantages > 0, advantages < 0))
    assert (case.mask & (case.ratio() > DUAL_CLIP) & (theirs.by_logprobs != 0)).any()


@pytest.mark.parametrize("divergence", ["tv", "kl"])
def test_sampler_correction_of_dppo_is_verls(case: OffPolicy, divergence: str):
    case = with_probabilities(case)
    sampler = replace(case, rollout_logprobs=case.rollout_logprobs - 4)
    weights = sampler.rollout_ratio().clamp(max=SAMPLER["correction_high"])
    objective = replace(dppo(divergence, 0.002), correction="truncate", **SAMPLER)
    theirs = verls(case, f"dppo_{divergence}", weights=weights, clip_ratio_low=0.002, clip_ratio_high=0.002,
                   clip_ratio_c=1e9)  # fmt: skip
    assert_same(ours(sampler, objective), theirs)


GMPO_CLIP = {"clip_low": 0.4, "clip_high": 0.3}


def test_gmpo_is_verls(case: OffPolicy):
    """verl takes the mean over all rows, the empty one among them, and adds 1e-8 to a length."""
    theirs = verls(case, "geo_mean", clip_ratio_low=0.4, clip_ratio_high=0.3)
    weights = weights_of(case, "response_mean", len(case.mask))
    assert_same(ours(case, gmpo(**GMPO_CLIP), weights), theirs, tolerance("seq-mean-token-mean"))
    advantages, log_ratio = case.of_tokens(case.advantages), case.logprobs - case.old_logprobs
    clipped = case.mask & (((advantages > 0) & (log_ratio > 0.3)) | ((advantages < 0) & (log_ratio < -0.4)))
    taught = case.mask & (advantages != 0)
    assert clipped.any() and ((theirs.by_logprobs == 0) == (clipped | ~taught)).all()


def test_gmpo_far_from_the_old_policy_stops_at_e_to_the_twenty_here(case: OffPolicy):
    """verl's mean of log-ratios has no bound."""
    far = replace(case, logprobs=case.old_logprobs - 30)
    weights = weights_of(case, "response_mean", len(case.mask))
    theirs, result = verls(far, "geo_mean"), ours(far, gmpo(0.2, 0.28), weights)
    better = case.mask & (case.of_tokens(case.advantages) > 0)
    assert (theirs.by_logprobs[better] != 0).all() and (result.by_logprobs[better] == 0).all()


def test_a_sampler_weight_of_gmpo_is_averaged_geometrically_by_verl_and_arithmetically_here(case: OffPolicy):
    """Here every token's loss has its own weight, as with each other ratio; verl gives the response one."""
    weights = case.rollout_ratio().clamp(max=SAMPLER["correction_high"])
    even = weights_of(case, "response_mean", len(case.mask))
    theirs = verls(case, "geo_mean", weights=weights, clip_ratio_low=0.4, clip_ratio_high=0.3)
    corrected = replace(gmpo(**GMPO_CLIP), correction="truncate", **SAMPLER)
    result = ours(case, corrected, even)
    assert_differ(result, theirs)
    lengths = case.lengths.clamp(min=1)
    arithmetic = (weights * case.mask).sum(1) / lengths
    geometric = ((weights.log() * case.mask).sum(1) / lengths).exp()
    assert even is not None
    assert_same(result, ours(case, gmpo(**GMPO_CLIP), even * case.of_tokens(arithmetic)))
    assert_same(ours(case, gmpo(**GMPO_CLIP), even * case.of_tokens(geometric)), theirs, 1e-7)


def test_a_lower_bound_of_cispo_is_verls_too(case: OffPolicy):
    objective = Objective(surrogate="cispo", **CLIP)
    assert (case.mask & (case.ratio() < 1 - CLIP["clip_low"])).any()
    assert_same(ours(case, objective), verls(case, "cispo"))


def test_gpg_is_cispo_on_policy(case: OffPolicy):
    """The logprob times the advantage, which no ratio weighs."""
    fresh = replace(case, old_logprobs=case.logprobs)
    assert_same(ours(fresh, cispo(RATIO_CAP)), verls(case, "gpg"))


@pytest.mark.parametrize("mode", list(MEANS))
@pytest.mark.parametrize(("estimator", "cap"), [("k1", 0.0), ("k2", 0.0), ("k3", 10.0)])
def test_divergence_and_its_gradient_are_verls(case: OffPolicy, estimator: str, cap: float, mode: str):
    """verl bounds k3 alone, at 10."""
    assert ((case.ref_logprobs - case.logprobs > 2.6) & case.mask).any()
    quiet = replace(case, advantages=torch.zeros_like(case.advantages))
    theirs = differentiated_loss(
        case,
        lambda logprobs: core_algos.agg_loss(
            core_algos.kl_penalty(logprobs, case.ref_logprobs, estimator), case.mask.double(), mode
        ),
    )
    result = ours(quiet, Objective(kl=estimator, kl_coef=1.0, kl_cap=cap), our_weights(case, mode))
    assert_same(result, theirs, tolerance(mode))


def test_verls_k3_plus_has_the_gradient_of_k2(case: OffPolicy):
    quiet = replace(case, advantages=torch.zeros_like(case.advantages))
    theirs = differentiated_loss(
        case,
        lambda logprobs: core_algos.agg_loss(
            core_algos.kl_penalty(logprobs, case.ref_logprobs, "k3+"), case.mask.double(), "token-mean"
        ),
    )
    result = ours(quiet, Objective(kl="k2", kl_coef=1.0))
    torch.testing.assert_close(result.by_logprobs, theirs.by_logprobs, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("estimator", ["k1", "k2"])
def test_beyond_a_log_ratio_of_twenty_k1_and_k2_go_on_in_verl_and_stop_here(case: OffPolicy, estimator: str):
    far = replace(case, ref_logprobs=case.logprobs - 30)
    value = {"k1": 20.0, "k2": 200.0}[estimator]
    result = ours(
        replace(far, advantages=torch.zeros_like(case.advantages)), Objective(kl=estimator, kl_coef=1.0)
    )  # fmt: skip
    torch.testing.assert_close(result.loss, torch.tensor(value).double(), rtol=1e-12, atol=0)
    assert (result.by_logprobs == 0).all()
    theirs = core_algos.kl_penalty(far.logprobs, far.ref_logprobs, estimator)
    torch.testing.assert_close(theirs, torch.full_like(theirs, {"k1": 30.0, "k2": 450.0}[estimator]))


@pytest.mark.parametrize("name", ["vanilla", "cispo"])
def test_a_log_ratio_beyond_twenty_is_cut_alike(case: OffPolicy, name: str):
    objective, settings = LOSSES[name]
    far = replace(case, logprobs=case.old_logprobs + (case.logprobs - case.old_logprobs) * 12)
    assert ((far.logprobs - far.old_logprobs).abs()[case.mask] > 20).any()
    assert_same(ours(far, objective), verls(far, name, **settings))


def test_gspos_ratio_stops_at_e_to_the_ten_in_verl_and_at_e_to_the_twenty_here(case: OffPolicy):
    far = replace(case, logprobs=case.old_logprobs + 12)
    advantages = case.of_tokens(case.advantages)
    worse = case.mask & (advantages < 0)
    theirs, result = verls(far, "gspo"), ours(far, Objective(**CLIP, ratio="sequence"))
    expected = -advantages * far.ratio(sequence=True) / case.num_tokens
    assert (theirs.by_logprobs[worse] == 0).all()
    torch.testing.assert_close(result.by_logprobs[worse], expected[worse], rtol=1e-12, atol=0)


def test_a_sampler_weight_stays_with_its_token_in_verls_gspo_and_acts_on_the_whole_response_here(case: OffPolicy):
    """verl's is GSPO-token, the gradient of `weight[t] * ratio` through token t. The derivative of the objective as
    written, which TRL has too, goes through the one ratio of the response to all its tokens: their mean weight."""
    bounds = {**SAMPLER, "correction": "truncate"}
    weights = case.rollout_ratio().clamp(max=SAMPLER["correction_high"])
    theirs = verls(case, "gspo", weights=weights)
    result = ours(case, Objective(**CLIP, ratio="sequence", **bounds))
    torch.testing.assert_close(result.loss, theirs.loss, rtol=1e-12, atol=0)
    assert_differ(result, theirs)
    mean = (weights * case.mask).sum(1) / case.lengths.clamp(min=1)
    averaged = verls(case, "gspo", weights=case.of_tokens(mean))
    torch.testing.assert_close(result.by_logprobs, averaged.by_logprobs, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", list(LOSSES))
def test_garbage_outside_the_mask_spoils_verls_gspo_and_cispo_and_none_of_ours(case: OffPolicy, name: str):
    """They mask after the product: NaN in gspo's loss, in cispo's gradient. `ours` has NaN there in every test."""
    objective, settings = LOSSES[name]
    spoilt = replace(case, logprobs=case.logprobs.masked_fill(~case.mask, torch.nan))
    theirs = verls(spoilt, name, **settings)
    assert bool(torch.isnan(theirs.loss)) == (name == "gspo")
    assert bool(torch.isnan(theirs.by_logprobs).any()) == (name == "cispo")
    assert_same(ours(spoilt, objective), verls(case, name, **settings))


SAMPLER_MODES = {"truncate": 2.0, "icepop": "0.5_2.0"}


@pytest.mark.parametrize("name", ["vanilla", "cispo"])
@pytest.mark.parametrize("correction", list(SAMPLER_MODES))
def test_sampler_correction_is_verls(case: OffPolicy, name: str, correction: str):
    """One threshold is truncation, two are IcePop."""
    weights, _ = rollout_corr.compute_rollout_correction_weights(
        case.old_logprobs - case.rollout_logprobs,
        case.mask.double(),
        rollout_is="token",
        rollout_is_threshold=SAMPLER_MODES[correction],
    )
    cut = {"truncate": weights == 2.0, "icepop": weights == 0}[correction] & case.mask
    assert cut.any() and (case.mask & ~cut).any()
    objective, settings = LOSSES[name]
    result = ours(case, replace(objective, correction=correction, **SAMPLER))
    assert_same(result, verls(case, name, weights=weights, **settings))


def rejection_mask(case: OffPolicy, bounds: str) -> Tensor:  # [N, L]
    return rollout_corr.compute_rollout_rejection_mask(
        case.old_logprobs - case.rollout_logprobs, case.mask.double(), "seq_mean_k1", bounds
    )[0]


def test_sequence_mask_is_verls_rejection_whose_bounds_are_of_the_inverse_ratio(case: OffPolicy):
    """verl compares rollout over old probability, so its bounds are the reciprocals, exchanged. It also takes what it
    rejects off the number of tokens, which here the caller gives."""
    low, high = 0.7, 2.0
    kept, taken_literally = rejection_mask(case, f"{1 / high}_{1 / low}"), rejection_mask(case, f"{low}_{high}")
    assert 0 < int(kept.sum()) < case.num_tokens and (kept != taken_literally).any()
    objective = Objective(
        **CLIP, dual_clip=DUAL_CLIP, correction="sequence_mask", correction_low=low, correction_high=high
    )
    assert_same(ours(case, objective, num_loss_tokens=int(kept.sum())), verls(case, response_mask=kept))


def rewards_of_groups() -> tuple[Tensor, np.ndarray, Tensor]:
    """Rewards [N], the group of each, and `cu_groups`: ragged, with equal ones, with binary ones, not of one."""
    generator = torch.Generator().manual_seed(2)
    lengths = [4, 7, 2, 5, 6]
    rewards = torch.randn(sum(lengths), generator=generator, dtype=torch.float64)
    rewards[4:11] = (rewards[4:11] > 0).double()
    rewards[13:18] = 0.5
    assert len(rewards[4:11].unique()) == 2
    index = np.repeat(np.arange(len(lengths)), lengths)
    return rewards, index, torch.tensor([0, *np.cumsum(lengths)])


def advantages_of_verl(
    name: str, rewards: Tensor, index: np.ndarray, tokens: Tensor | None = None, **settings
) -> Tensor:
    """[N, L] from rewards that stand at the first of three tokens, or of as many as each response has."""
    mask = torch.ones(len(rewards), 3) if tokens is None else (torch.arange(3) < tokens[:, None]).float()
    spread = torch.zeros(len(rewards), 3, dtype=rewards.dtype)
    spread[:, 0] = rewards
    return core_algos.get_adv_estimator_fn(name)(
        token_level_rewards=spread, response_mask=mask.to(rewards.dtype), index=index, **settings
    )[0]


@pytest.mark.parametrize(
    ("name", "settings", "options"),
    [
        ("grpo", {}, {}),
        ("grpo", {"norm_adv_by_std_in_grpo": False}, {"scale": "none"}),
        ("rloo", {}, {"baseline": "leave_one_out", "scale": "none"}),
        ("rloo_vectorized", {}, {"baseline": "leave_one_out", "scale": "none"}),
    ],
)
def test_advantages_are_verls(name: str, settings: dict, options: dict):
    rewards, index, cu_groups = rewards_of_groups()
    theirs = advantages_of_verl(name, rewards, index, **settings)
    got = group_advantages(rewards, cu_groups=cu_groups, **options)
    torch.testing.assert_close(got, theirs[:, 0], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("options", [{}, {"scale": "none"}])
def test_verls_vectorised_advantages_are_ours_to_float32(options: dict):
    rewards, index, cu_groups = rewards_of_groups()
    settings = {"norm_adv_by_std_in_grpo": not options}
    theirs = advantages_of_verl("grpo_vectorized", rewards, index, **settings).double()
    torch.testing.assert_close(
        group_advantages(rewards, cu_groups=cu_groups, **options), theirs[:, 0], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("name", ["grpo", "rloo", "reinforce_plus_plus_baseline"])
def test_a_group_of_one_keeps_its_reward_in_verl_and_has_no_advantage_here(name: str):
    """Nothing to compare it with. verl's own `rloo_vectorized` says 0 as we do."""
    rewards, index = torch.tensor([3.0, 1.0, 0.0]).double(), np.array([0, 1, 1])
    assert advantages_of_verl(name, rewards, index)[0, 0] > 0.5
    assert advantages_of_verl("rloo_vectorized", rewards, index)[0, 0] == 0
    assert group_advantages(rewards, cu_groups=torch.tensor([0, 1, 3]))[0] == 0


def test_equal_rewards_that_float32_cannot_average_have_an_advantage_in_verl_and_none_here():
    rewards = torch.full((7,), 0.1)
    theirs = advantages_of_verl("grpo", rewards, np.zeros(7, dtype=int))
    assert 0 < float(theirs.abs().max()) < 0.05
    assert (group_advantages(rewards, 7) == 0).all()


def test_reinforce_plus_plus_baseline_is_verls_for_responses_of_one_length():
    """Up to Bessel's correction, of tokens there and of responses here, and verl's constant below the root."""
    rewards, index, cu_groups = rewards_of_groups()
    theirs = advantages_of_verl("reinforce_plus_plus_baseline", rewards, index)
    count = len(rewards)
    by_tokens = (count / (count - 1)) / (3 * count / (3 * count - 1))
    got = group_advantages(rewards, cu_groups=cu_groups, scale="batch", eps=0.0)
    torch.testing.assert_close(got * by_tokens**0.5, theirs[:, 0], rtol=1e-7, atol=1e-9)


def test_for_ragged_responses_verl_whitens_over_tokens_and_we_over_responses():
    """There a response counts by its length, and the mean that is taken off again is not 0."""
    rewards, index, cu_groups = rewards_of_groups()
    tokens = torch.arange(len(rewards)) % 3 + 1
    theirs = advantages_of_verl("reinforce_plus_plus_baseline", rewards, index, tokens)
    centred = group_advantages(rewards, cu_groups=cu_groups, scale="none")
    of_tokens = centred.repeat_interleave(tokens)
    whitened = (centred - of_tokens.mean()) / of_tokens.std()
    torch.testing.assert_close(theirs[:, 0], whitened, rtol=1e-6, atol=1e-8)
    got = group_advantages(rewards, cu_groups=cu_groups, scale="batch", eps=0.0)
    torch.testing.assert_close(got, centred / centred.std(), rtol=1e-12, atol=0)
    assert float((got - theirs[:, 0]).abs().max()) > 0.02


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_and_entropy_are_verls(temperature: float):
    (hidden, weight, _), ids = head()

    def theirs(x: Tensor) -> tuple[Tensor, Tensor]:
        x = x / temperature
        return torch_functional.logprobs_from_logits(x, ids), torch_functional.entropy_from_logits(x)

    for got, want in (
        (
            differentiated(
                lambda x: logprobs_from_logits(x, ids, temperature=temperature, entropy=True), [hidden @ weight.T]
            ),
            differentiated(theirs, [hidden @ weight.T]),
        ),
        (
            differentiated(
                lambda h, w: linear_logprobs(h, w, ids, temperature=temperature, entropy=True, chunk_tokens=7),
                [hidden, weight],
            ),
            differentiated(lambda h, w: theirs(h @ w.T), [hidden, weight]),
        ),
    ):
        for mine, other in zip(got, want, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_linear_logprobs_are_as_exact_as_verls_fused_ones(temperature: float):
    (*doubles, _), ids = head()
    singles = [t.float() for t in doubles]
    fused = experimental.FusedLinearForPPO(chunk_size=16)
    truth = differentiated(lambda h, w: reference.linear_logprobs(h, w, ids, temperature=temperature), doubles)
    theirs = differentiated(lambda h, w: fused(h, w, ids, temperature), singles)
    got = differentiated(
        lambda h, w: linear_logprobs(h, w, ids, temperature=temperature, entropy=True, chunk_tokens=7), singles
    )
    for mine, other, right in zip(got, theirs, truth, strict=True):
        assert_as_exact(mine, other, right)


def test_logprobs_of_bfloat16_logits_are_rounded_to_bfloat16_by_verl_and_not_here():
    (hidden, weight, _), ids = head()
    logits = (hidden @ weight.T).bfloat16()
    truth, _ = reference.logprobs_from_logits(logits.double(), ids)
    theirs, got = torch_functional.logprobs_from_logits(logits, ids), logprobs_from_logits(logits, ids)[0]
    assert theirs.dtype == torch.bfloat16 and float((theirs.double() - truth).abs().max()) > 0.02
    assert got.dtype == torch.float32 and float((got.double() - truth).abs().max()) < 1e-5


def test_logprobs_of_bfloat16_hidden_states_are_rounded_by_verls_fused_head_and_not_here():
    """Its logits are bfloat16 before they become float32; ours come from the float32 accumulators."""
    (*doubles, _), ids = head()
    halves = [t.bfloat16() for t in doubles]
    truth, _ = reference.linear_logprobs(*(t.double() for t in halves), ids)
    theirs, _ = experimental.FusedLinearForPPO()(*halves, ids)
    got, _ = linear_logprobs(*halves, ids)
    assert float((theirs.double() - truth).abs().max()) > 0.02
    assert float((got.double() - truth).abs().max()) < 1e-4


def test_entropy_beside_a_forbidden_token_is_nan_in_verl_and_right_here():
    """A logit of -inf, as a padded vocabulary has: its probability is 0, and so is its part of the entropy."""
    (hidden, weight, _), ids = head()
    logits = hidden @ weight.T
    allowed = logits[:, :-1].clone()
    logits[:, -1] = -inf
    _, entropy = logprobs_from_logits(logits, ids.clamp(max=allowed.shape[1] - 1), entropy=True)
    torch.testing.assert_close(entropy, torch_functional.entropy_from_logits(allowed), rtol=1e-12, atol=1e-13)
    assert torch.isnan(torch_functional.entropy_from_logits(logits)).all()


def test_the_entropy_bonus_is_verls(case: OffPolicy):
    """verl subtracts the coefficient times the entropy, averaged as the loss is."""
    for mode in MEANS:
        entropy = case.entropy.clone().requires_grad_()
        bonus = -0.3 * core_algos.agg_loss(entropy, case.mask.double(), mode)
        bonus.backward()
        policy = verls(case, mode=mode)
        theirs = Result(policy.loss + bonus.detach(), policy.by_logprobs, entropy.grad)
        objective = replace(LOSSES["vanilla"][0], entropy_coef=0.3)
        assert_same(ours(case, objective, our_weights(case, mode)), theirs, tolerance(mode))


def test_micro_batches_sum_to_verls_loss_over_the_update(case: OffPolicy):
    """Each micro-batch with the update's `num_loss_tokens`, and no mean afterwards."""
    objective = LOSSES["vanilla"][0]
    total = torch.zeros((), dtype=torch.float64)
    for rows in (slice(0, 3), slice(3, 8)):
        fields = (case.logprobs, case.old_logprobs, case.of_tokens(case.advantages), case.mask)
        total += grpo_loss(*(f[rows].flatten() for f in fields), case.num_tokens, objective).loss
    torch.testing.assert_close(total, verls(case).loss, rtol=1e-12, atol=0)
