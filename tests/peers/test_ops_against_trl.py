"""Our ops against TRL's own code, executed as published: a GRPOTrainer's loss, advantages and correction."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from math import inf

import pytest
import torch
from fastgrpo_kernels import (
    Objective,
    cispo,
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

trl = pytest.importorskip("trl")
trl_utils = pytest.importorskip("trl.trainer.utils")
trl_gmpo = pytest.importorskip("trl.experimental.gmpo")
trl_kernels = pytest.importorskip("trl.kernels")

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")]

HORIZON, GROUP_SIZE = 5, 4
MEANS = {
    "grpo": "response_mean",
    "bnpo": "token_mean",
    "dr_grpo": "constant",
    "dapo": "token_mean",
    "luspo": "response_sum",
    "cispo": "token_mean",
    "sapo": "response_mean",
}
SAPO = {"positive": 1.25, "negative": 2.125}  # which float32 holds: TRL's temperatures are of that dtype
LEVELS = ["token", "sequence"]
# TRL also weighs tokens by a response's ratio in cispo and sapo, which their papers do not and Objective refuses.
LOSSES = [s for s in product(MEANS, LEVELS, [0.0, 0.04]) if s[1] == "token" or s[0] not in ("cispo", "sapo")]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory):
    from datasets import Dataset

    from tests.peers.tiny_peers import tiny_model, tokenizer

    return trl.GRPOTrainer(
        model=tiny_model(),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=trl.GRPOConfig(
            output_dir=str(tmp_path_factory.mktemp("trl")),
            use_cpu=True,
            bf16=False,
            report_to="none",
            per_device_train_batch_size=8,
            num_generations=GROUP_SIZE,
            max_completion_length=HORIZON,
        ),
        train_dataset=Dataset.from_list([{"prompt": "w5"}] * 8),
        processing_class=tokenizer(),
    )


@pytest.fixture
def trainer(built, monkeypatch: pytest.MonkeyPatch):
    """Fresh settings for every test, from the same trainer."""

    def configure(delta: float | None = None, corrected_kl: bool = False, **settings):
        monkeypatch.setattr(built.args, "delta", delta)
        monkeypatch.setattr(built.args, "use_bias_correction_kl", corrected_kl)
        for sign, temperature in SAPO.items():
            monkeypatch.setattr(built.args, f"sapo_temperature_{sign[:3]}", temperature)
        for name, value in {"loss_type": "dapo", "beta": 0.0, **settings}.items():
            monkeypatch.setattr(built, name, value)
        return built

    monkeypatch.setattr(built, "current_gradient_accumulation_steps", 1, raising=False)
    monkeypatch.setattr(built, "epsilon_low", CLIP["clip_low"])
    monkeypatch.setattr(built, "epsilon_high", CLIP["clip_high"])
    return configure


@pytest.fixture
def case() -> OffPolicy:
    return make_case()


def trl_inputs(case: OffPolicy) -> dict[str, Tensor]:
    ids = torch.zeros(case.mask.shape, dtype=torch.int64)
    return {
        "prompt_ids": ids[:, :1],
        "prompt_mask": torch.ones_like(ids[:, :1]),
        "completion_ids": ids,
        "completion_mask": case.mask.long(),
        "advantages": case.advantages,
        "old_per_token_logps": case.old_logprobs,
        "ref_per_token_logps": case.ref_logprobs,
        "num_items_in_batch": torch.tensor(case.num_tokens),
    }


def trls(trainer, case: OffPolicy, monkeypatch: pytest.MonkeyPatch, **inputs: Tensor) -> Result:
    """`_compute_loss` with the model's logprobs and entropy given, so that all of it runs in float64."""
    logprobs, entropy = case.logprobs.clone().requires_grad_(), case.entropy.clone().requires_grad_()
    monkeypatch.setattr(trainer, "_get_per_token_logps_and_entropies", lambda *_, **__: (logprobs, entropy, None))
    loss = trainer._compute_loss(trainer.model, {**trl_inputs(case), **inputs})
    loss.backward()
    return Result(loss.detach(), logprobs.grad, entropy.grad)


def our_weights(case: OffPolicy, loss_type: str) -> Tensor | None:
    return weights_of(case, MEANS[loss_type], len(case.mask), HORIZON)


@pytest.mark.parametrize(("loss_type", "level", "beta"), LOSSES)
@pytest.mark.parametrize("delta", [None, DUAL_CLIP])
def test_loss_and_gradient_are_trls(
    trainer, monkeypatch, case: OffPolicy, loss_type: str, level: str, beta: float, delta: float | None
):
    """TRL's cispo takes the cap of the ratio in `epsilon_high`; its `delta` is dual clip: cispo and sapo have none."""
    assert_every_branch_occurs(case, level == "sequence")
    settings = {"loss_type": loss_type, "importance_sampling_level": level, "beta": beta, "delta": delta}
    built = trainer(**settings)
    if loss_type == "cispo":
        monkeypatch.setattr(built, "epsilon_high", RATIO_CAP)
        objective = cispo(RATIO_CAP)
    elif loss_type == "sapo":
        objective = sapo(**SAPO)
    else:
        objective = Objective(**CLIP, dual_clip=delta or 0.0)
    objective = replace(objective, ratio=level, kl_coef=beta)
    assert_same(ours(case, objective, our_weights(case, loss_type)), trls(built, case, monkeypatch))


@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_gmpo_is_trls(trainer, monkeypatch, case: OffPolicy, beta: float):
    """Its trainer replaces `_compute_loss` alone. There a response without tokens has the loss of a ratio of 1, which
    has no gradient."""
    built = trainer(beta=beta)
    monkeypatch.setattr(built, "_compute_loss", partial(trl_gmpo.GMPOTrainer._compute_loss, built))
    objective = replace(gmpo(CLIP["clip_low"], CLIP["clip_high"]), kl_coef=beta)
    theirs = trls(built, case, monkeypatch)
    of_empty = -case.advantages[case.lengths == 0].sum() / len(case.mask)
    assert of_empty != 0
    assert_same(ours(case, objective, our_weights(case, "grpo")), replace(theirs, loss=theirs.loss - of_empty))


def test_trl_multiplies_the_divergence_by_the_ratio_unless_told_not_to_and_we_do_not(
    trainer, monkeypatch, case: OffPolicy
):
    """`use_bias_correction_kl` is TRL's default; its gradient is the ratio times k2's, so k2 has it on policy."""
    assert type(trainer().args).use_bias_correction_kl is True
    built = trainer(beta=0.04, corrected_kl=True)
    assert_differ(ours(case, Objective(**CLIP, kl_coef=0.04)), trls(built, case, monkeypatch))
    fresh = replace(case, old_logprobs=case.logprobs)
    corrected = trls(built, fresh, monkeypatch).by_logprobs
    k2 = ours(fresh, Objective(**CLIP, kl="k2", kl_coef=0.04)).by_logprobs
    torch.testing.assert_close(k2, corrected, rtol=1e-12, atol=1e-15)


def test_delta_below_the_upper_bound_is_not_dual_clip(trainer, monkeypatch, case: OffPolicy):
    """TRL's `delta` then also caps positive advantages, and is without effect on negative ones. Dual clip, which we
    follow, bounds the negative ones alone (Ye 2020, eq. 5)."""
    delta = 1.2
    assert delta < 1 + CLIP["clip_high"]
    theirs = trls(trainer(delta=delta), case, monkeypatch)
    result = ours(case, Objective(**CLIP, dual_clip=delta))
    between = case.mask & (case.ratio() > delta) & (case.ratio() < 1 + CLIP["clip_high"])
    advantages = case.of_tokens(case.advantages)
    for where, mine, other in (
        (between & (advantages > 0), -(case.ratio() * advantages) / case.num_tokens, torch.zeros_like(advantages)),
        (between & (advantages < 0), torch.zeros_like(advantages), -(case.ratio() * advantages) / case.num_tokens),
    ):
        assert where.any()
        torch.testing.assert_close(result.by_logprobs[where], mine[where], rtol=1e-12, atol=0)
        torch.testing.assert_close(theirs.by_logprobs[where], other[where], rtol=1e-12, atol=0)


def test_the_entropy_bonus_is_trls_for_the_token_mean(trainer, monkeypatch, case: OffPolicy):
    built = trainer(loss_type="dapo", _entropy_bonus_enabled=True, entropy_coef=0.3)
    theirs = trls(built, case, monkeypatch)
    assert theirs.by_entropy is not None and theirs.by_entropy.abs().sum() > 0
    assert_same(ours(case, Objective(**CLIP, entropy_coef=0.3)), theirs)


def test_for_other_means_trls_bonus_stays_a_token_mean_and_ours_is_weighted_as_the_loss(
    trainer, monkeypatch, case: OffPolicy
):
    theirs = trls(trainer(loss_type="grpo", _entropy_bonus_enabled=True, entropy_coef=0.3), case, monkeypatch)
    weights = our_weights(case, "grpo")
    result = ours(case, Objective(**CLIP, entropy_coef=0.3), weights)
    torch.testing.assert_close(result.by_logprobs, theirs.by_logprobs, rtol=1e-12, atol=1e-15)
    token_mean = -0.3 / case.num_tokens
    torch.testing.assert_close(theirs.by_entropy[case.mask], torch.full((case.num_tokens,), token_mean).double())
    torch.testing.assert_close(result.by_entropy[case.mask], token_mean * weights[case.mask], rtol=1e-12, atol=0)


def test_garbage_outside_the_mask_spoils_trls_loss_and_not_ours(trainer, monkeypatch, case: OffPolicy):
    """TRL multiplies by the mask at the end, and 0 times NaN is NaN. `ours` has NaN there in every test."""
    spoilt = replace(case, logprobs=case.logprobs.masked_fill(~case.mask, torch.nan))
    assert torch.isnan(trls(trainer(), spoilt, monkeypatch).loss)
    assert_same(ours(case, Objective(**CLIP)), trls(trainer(), case, monkeypatch))


@pytest.mark.parametrize("what", ["policy", "divergence"])
def test_a_log_ratio_of_a_hundred_overflows_in_trl_and_not_here(trainer, monkeypatch, case: OffPolicy, what: str):
    """In float32, where ours holds log-ratios within +-20 as verl does."""
    moved = {"old_logprobs": case.logprobs - 100} if what == "policy" else {"ref_logprobs": case.logprobs + 100}
    far = replace(case, **moved)
    singles = replace(far, **{f: getattr(far, f).float() for f in ("logprobs", "old_logprobs", "ref_logprobs")})
    beta = 0.0 if what == "policy" else 0.04
    assert not torch.isfinite(trls(trainer(beta=beta), singles, monkeypatch).loss)
    objective = Objective(**CLIP, kl_coef=beta)
    result, advantages = ours(singles, objective), case.of_tokens(case.advantages)
    fields = [f.flatten() for f in (far.logprobs, far.old_logprobs, advantages)]
    truth = reference.grpo_loss(
        *fields,
        case.num_tokens,
        objective,
        response_mask=case.mask.flatten(),
        ref_logprobs=far.ref_logprobs.flatten(),
    )
    torch.testing.assert_close(result.loss.double(), truth, rtol=1e-5, atol=0)
    assert torch.isfinite(result.by_logprobs).all()


def generated(trainer, case: OffPolicy, monkeypatch: pytest.MonkeyPatch, rewards: list[float] | None = None):
    """What TRL makes of given responses: with the sampler's logprobs, its ratios; with rewards, its advantages."""
    rows, columns = case.mask.shape
    masks = case.mask.int().tolist()
    made = [[5]] * rows, [[6] * columns] * rows, masks, ["w6"] * rows, case.rollout_logprobs.tolist(), {}, None, None
    monkeypatch.setattr(trainer, "_generate", lambda _: made)
    monkeypatch.setattr(trainer, "_get_per_token_logps_and_entropies", lambda *_, **__: (case.old_logprobs, None, None))
    values = torch.tensor(rewards or [0.0] * rows)[:, None]
    monkeypatch.setattr(trainer, "_calculate_rewards", lambda *_: values)
    return trainer._generate_and_score_completions([{"prompt": "w5"}] * rows)


SAMPLER_SETTINGS: dict[str, object] = {"use_vllm": True, "vllm_importance_sampling_correction": True}


def sampler_ratio(trainer: Callable, case: OffPolicy, monkeypatch, mode: str, low: float | None, **settings) -> Tensor:
    built = trainer(
        vllm_importance_sampling_mode=mode,
        vllm_importance_sampling_clip_min=low,
        vllm_importance_sampling_clip_max=SAMPLER["correction_high"],
        **SAMPLER_SETTINGS,
        **settings,
    )
    return generated(built, case, monkeypatch)["importance_sampling_ratio"]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize(("mode", "low", "correction"), [("truncate", None, "truncate"), ("mask", 0.5, "icepop")])
def test_token_level_sampler_correction_is_trls(
    trainer, monkeypatch, case: OffPolicy, level: str, beta: float, mode: str, low: float | None, correction: str
):
    settings = {"importance_sampling_level": level, "beta": 0.0}
    weights = sampler_ratio(trainer, case, monkeypatch, f"token_{mode}", low, **settings)
    cut = {"truncate": weights == SAMPLER["correction_high"], "mask": weights == 0}[mode] & case.mask
    assert cut.any() and (case.mask & ~cut).any()
    theirs = trls(trainer(**SAMPLER_SETTINGS, **{**settings, "beta": beta}), case, monkeypatch,
                  importance_sampling_ratio=weights)  # fmt: skip
    objective = Objective(
        **CLIP, ratio=level, kl_coef=beta, correction=correction, **SAMPLER
    )  # fmt: skip
    assert_same(ours(case, objective), theirs)


@pytest.mark.parametrize("mode", ["sequence_truncate", "sequence_mask", "token_truncate", "token_mask"])
def test_any_sampler_weight_of_trl_can_be_given_as_token_weights_where_there_is_no_divergence(
    trainer, monkeypatch, case: OffPolicy, mode: str
):
    """TRL's `sequence_*` weigh a response by the product over its tokens, which no `correction` of ours does."""
    weights = sampler_ratio(trainer, case, monkeypatch, mode, 0.5)
    assert weights.shape[1] == (1 if mode.startswith("sequence") else case.mask.shape[1])
    assert ((weights > 0) & case.mask).any()
    theirs = trls(trainer(**SAMPLER_SETTINGS), case, monkeypatch, importance_sampling_ratio=weights)
    assert_same(ours(case, Objective(**CLIP), weights.expand(case.mask.shape)), theirs)


def test_trls_sequence_mask_is_of_the_product_with_its_weight_and_ours_of_the_geometric_mean_without(
    trainer, monkeypatch, case: OffPolicy
):
    low, high = SAMPLER["correction_low"], SAMPLER["correction_high"]
    log_ratio = (case.old_logprobs - case.rollout_logprobs) * case.mask
    product_ratio, mean_ratio = log_ratio.sum(1).exp(), (log_ratio.sum(1) / case.lengths.clamp(min=1)).exp()
    by_product, by_mean = ((r >= low) & (r <= high) for r in (product_ratio, mean_ratio))
    assert (by_mean & ~by_product).any()

    weights = sampler_ratio(trainer, case, monkeypatch, "sequence_mask", low)
    torch.testing.assert_close(weights[:, 0], torch.where(by_product, product_ratio, 0.0), rtol=1e-12, atol=0)
    result = ours(case, Objective(surrogate="cispo", correction="sequence_mask", **SAMPLER))
    plain = ours(case, Objective(surrogate="cispo"))
    kept = (case.mask & by_mean[:, None], case.mask & ~by_mean[:, None])
    assert (plain.by_logprobs[kept[1]] != 0).any()
    torch.testing.assert_close(result.by_logprobs[kept[0]], plain.by_logprobs[kept[0]], rtol=0, atol=0)
    assert (result.by_logprobs[kept[1]] == 0).all()


def test_a_lower_bound_of_trls_truncation_lifts_small_weights_and_ours_leaves_them(
    trainer, monkeypatch, case: OffPolicy
):
    """Truncated importance sampling cuts from above alone; `correction_low` is not read by it."""
    low, high = SAMPLER["correction_low"], SAMPLER["correction_high"]
    weights = sampler_ratio(trainer, case, monkeypatch, "token_truncate", low)
    torch.testing.assert_close(weights[case.mask], case.rollout_ratio()[case.mask].clamp(low, high))
    theirs = trls(trainer(**SAMPLER_SETTINGS), case, monkeypatch, importance_sampling_ratio=weights)
    result = ours(case, Objective(**CLIP, correction="truncate", **SAMPLER))
    assert_differ(result, theirs)
    assert_same(result, ours(case, Objective(**CLIP), case.rollout_ratio().clamp(max=high)))


REWARDS = [0.0, 1.0, 1.0, 0.0, 0.3, -2.2, -1.0, 0.7]


@pytest.mark.parametrize("scale", ["group", "none"])
def test_advantages_are_trls_with_its_constant(trainer, monkeypatch, case: OffPolicy, scale: str):
    theirs = generated(trainer(scale_rewards=scale), case, monkeypatch, REWARDS)["advantages"]
    got = group_advantages(torch.tensor(REWARDS), GROUP_SIZE, scale=scale, eps=1e-4)
    torch.testing.assert_close(got, theirs, rtol=1e-6, atol=1e-7)


def test_trls_batch_scale_is_the_spread_of_the_rewards_and_ours_that_of_the_centred_ones(
    trainer, monkeypatch, case: OffPolicy
):
    """Ours is REINFORCE++-baseline's; they are equal where all groups have one mean."""
    theirs = generated(trainer(scale_rewards="batch"), case, monkeypatch, REWARDS)["advantages"].double()
    rewards = torch.tensor(REWARDS, dtype=torch.float64)
    centred = rewards - rewards.view(-1, GROUP_SIZE).mean(1).repeat_interleave(GROUP_SIZE)
    assert abs(float(rewards.std() / centred.std()) - 1) > 0.1
    got = group_advantages(rewards, GROUP_SIZE, scale="batch", eps=1e-4)
    torch.testing.assert_close(theirs, centred / (rewards.std() + 1e-4), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got, centred / (centred.std() + 1e-4), rtol=1e-12, atol=0)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_and_entropy_are_those_of_trls_selective_log_softmax(temperature: float):
    (hidden, weight, _), ids = head()
    logits = hidden @ weight.T

    def theirs(x: Tensor) -> tuple[Tensor, Tensor]:
        return trl_utils.selective_log_softmax_and_entropy(x, ids, temperature=temperature)

    want = differentiated(theirs, [logits])
    got = differentiated(lambda x: logprobs_from_logits(x, ids, temperature=temperature, entropy=True), [logits])
    for mine, other in zip(got, want, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-13)
    linear = differentiated(
        lambda h, w: linear_logprobs(h, w, ids, temperature=temperature, entropy=True, chunk_tokens=7),
        [hidden, weight],
    )
    through = differentiated(lambda h, w: theirs(h @ w.T), [hidden, weight])
    for mine, other in zip(linear, through, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("softcap", [None, 8.0])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_linear_logprobs_are_as_exact_as_trls_chunked_ones(softcap: float | None, temperature: float):
    """TRL's chunks and the gradients from them are float32 whatever the dtype."""
    doubles, ids = head()
    singles = [t.float() for t in doubles]
    truth = differentiated(
        lambda h, w, b: reference.linear_logprobs(h, w, ids, bias=b, temperature=temperature, softcap=softcap), doubles
    )
    theirs = differentiated(
        lambda h, w, b: trl_kernels.ChunkedLogProbFunction.apply(h, w, b, ids, temperature, 16, softcap)[:2], singles
    )
    got = differentiated(
        lambda h, w, b: linear_logprobs(
            h, w, ids, bias=b, temperature=temperature, softcap=softcap, entropy=True, chunk_tokens=7
        ),
        singles,
    )
    for mine, other, right in zip(got, theirs, truth, strict=True):
        assert_as_exact(mine, other, right)


def test_logprobs_of_bfloat16_logits_are_rounded_to_bfloat16_by_trl_and_not_here():
    (hidden, weight, _), ids = head()
    logits = (hidden @ weight.T).bfloat16()
    truth, _ = reference.logprobs_from_logits(logits.double(), ids)
    theirs, got = trl_utils.selective_log_softmax(logits, ids), logprobs_from_logits(logits, ids)[0]
    assert theirs.dtype == torch.bfloat16 and float((theirs.double() - truth).abs().max()) > 0.02
    assert got.dtype == torch.float32 and float((got.double() - truth).abs().max()) < 1e-5


def test_entropy_beside_a_forbidden_token_is_nan_in_trl_and_right_here():
    """A logit of -inf, as a padded vocabulary has: its probability is 0, and so is its part of the entropy."""
    (hidden, weight, _), ids = head()
    logits = hidden @ weight.T
    allowed = logits[:, :-1]
    ids = ids.clamp(max=allowed.shape[1] - 1)
    logits[:, -1] = -inf
    _, entropy = logprobs_from_logits(logits, ids, entropy=True)
    torch.testing.assert_close(entropy, trl_utils.entropy_from_logits(allowed), rtol=1e-12, atol=1e-13)
    assert torch.isnan(trl_utils.entropy_from_logits(logits)).all()


def test_old_logprobs_that_are_left_out_are_the_current_ones_as_in_trl(trainer, monkeypatch, case: OffPolicy):
    inputs = {k: v for k, v in trl_inputs(case).items() if k != "old_per_token_logps"}
    logprobs = case.logprobs.clone().requires_grad_()
    built = trainer()
    monkeypatch.setattr(built, "_get_per_token_logps_and_entropies", lambda *_, **__: (logprobs, case.entropy, None))
    loss = built._compute_loss(built.model, inputs)
    loss.backward()
    mine = case.logprobs.flatten().clone().requires_grad_()
    advantages, mask = case.of_tokens(case.advantages).flatten(), case.mask.flatten()
    output = grpo_loss(mine, None, advantages, mask, case.num_tokens, Objective(**CLIP))
    output.loss.backward()
    torch.testing.assert_close(output.loss, loss, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(mine.grad.view_as(logprobs), logprobs.grad, rtol=1e-12, atol=1e-15)
