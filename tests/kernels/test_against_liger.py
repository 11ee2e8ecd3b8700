"""Our ops against Liger's chunked GRPO loss and its Triton one, executed as published."""

import os
import subprocess
import sys
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import pytest
import torch
from fastgrpo_kernels import Objective, cispo, grpo_loss, linear_grpo, logprobs_from_logits, reference
from torch import Tensor

from tests.peers.op_cases import (
    CLIP,
    DUAL_CLIP,
    RATIO_CAP,
    SAMPLER,
    OffPolicy,
    assert_as_exact,
    assert_every_branch_occurs,
    make_case,
    weights_of,
)

liger = pytest.importorskip("liger_kernel.chunked_loss.grpo_loss")

WIDTH, VOCABULARY, HORIZON, TEMPERATURE, BETA = 16, 53, 20, 0.7, 0.04
MEANS = {
    "grpo": "response_mean",
    "bnpo": "token_mean",
    "dr_grpo": "constant",
    "dapo": "token_mean",
    "cispo": "token_mean",
}
NAMES = "loss", "hidden", "weight", "bias"


@dataclass(frozen=True)
class Head:
    """An off-policy case whose logprobs come from hidden states, and numbers that float32 holds exactly."""

    hidden: Tensor  # [N, L, D]
    weight: Tensor  # [V, D]
    bias: Tensor  # [V]
    target_ids: Tensor  # [N, L]
    case: OffPolicy

    def leaves(self, dtype: torch.dtype) -> list[Tensor]:
        return [t.to(dtype, copy=True).requires_grad_() for t in (self.hidden, self.weight, self.bias)]


def rounded(values: Tensor) -> Tensor:
    return values.float().double()


@pytest.fixture(scope="module")
def head() -> Head:
    generator = torch.Generator().manual_seed(5)
    case = make_case()
    rows, columns = case.mask.shape
    shapes = (rows, columns, WIDTH), (VOCABULARY, WIDTH), (VOCABULARY,)
    hidden, weight, bias = (rounded(torch.randn(s, generator=generator).double()) for s in shapes)
    ids = torch.randint(VOCABULARY, (rows, columns), generator=generator)
    logprobs, _ = reference.linear_logprobs(
        hidden.flatten(0, 1), weight, ids.flatten(), bias=bias, temperature=TEMPERATURE
    )
    logprobs = logprobs.view(rows, columns)
    moved = {
        name: rounded(logprobs - (case.logprobs - getattr(case, name)))
        for name in ("old_logprobs", "ref_logprobs", "rollout_logprobs")
    }
    return Head(hidden, weight, bias, ids, replace(case, logprobs=logprobs, **moved))


def ligers(head: Head, *, delta: float | None = None, weights: Tensor | None = None, **settings) -> dict[str, Tensor]:
    """Liger's loss and gradients, in float32, in which it computes whatever it is given."""
    case, (hidden, weight, bias) = head.case, head.leaves(torch.float32)
    beta = settings.pop("beta", 0.0)
    function = liger.LigerFusedLinearGRPOLoss(
        beta=beta,
        compiled=False,
        use_ref_model=beta != 0,
        temperature=TEMPERATURE,
        max_completion_length=HORIZON,
        delta=delta,
        **{"epsilon_low": CLIP["clip_low"], "epsilon_high": CLIP["clip_high"], **settings},
    )
    loss, _ = function(
        hidden,
        weight,
        head.target_ids,
        case.mask.float(),
        case.advantages.float(),
        bias=bias,
        ref_per_token_logps=case.ref_logprobs.float() if beta else None,
        old_per_token_logps=case.old_logprobs.float(),
        vllm_is_ratio=None if weights is None else weights.float(),
    )
    loss.backward()
    return dict(zip(NAMES, (loss.detach(), hidden.grad, weight.grad, bias.grad), strict=True))


def fields_of(head: Head, objective: Objective, dtype: torch.dtype, weights: Tensor | None, garbage: float) -> dict:
    def packed(values: Tensor) -> Tensor:
        return values.to(dtype).masked_fill(~head.case.mask, garbage).flatten()

    case = head.case
    return {
        "old_logprobs": packed(case.old_logprobs),
        "advantages": packed(case.of_tokens(case.advantages)),
        "response_mask": case.mask.flatten(),
        "num_loss_tokens": case.num_tokens,
        "objective": objective,
        "temperature": TEMPERATURE,
        "ref_logprobs": packed(case.ref_logprobs) if objective.kl_coef else None,
        "rollout_logprobs": packed(case.rollout_logprobs) if objective.correction != "none" else None,
        "token_weights": None if weights is None else packed(weights),
        "cu_seqlens": case.cu_seqlens,
    }


def ours(head: Head, objective: Objective, weights: Tensor | None = None) -> dict[str, Tensor]:
    """Our loss and gradients, in float32, in chunks smaller than a response if possible, with NaN outside the mask."""
    hidden, weight, bias = head.leaves(torch.float32)
    options = fields_of(head, objective, torch.float32, weights, torch.nan)
    output = linear_grpo(
        hidden.flatten(0, 1), weight, head.target_ids.flatten(), bias=bias, chunk_tokens=7, **options
    )  # fmt: skip
    output.loss.backward()
    return dict(zip(NAMES, (output.loss.detach(), hidden.grad, weight.grad, bias.grad), strict=True))


def exact(head: Head, objective: Objective, weights: Tensor | None = None) -> dict[str, Tensor]:
    """Loss and gradients by the definition in float64."""
    hidden, weight, bias = head.leaves(torch.float64)
    options = fields_of(head, objective, torch.float64, weights, 0.0)
    loss = reference.linear_grpo(hidden.flatten(0, 1), weight, head.target_ids.flatten(), bias=bias, **options)
    loss.backward()
    return dict(zip(NAMES, (loss.detach(), hidden.grad, weight.grad, bias.grad), strict=True))


def assert_confirmed(ours: dict[str, Tensor], theirs: dict[str, Tensor], truth: dict[str, Tensor]) -> None:
    for name, right in truth.items():
        assert_as_exact(ours[name], theirs[name], right)


def our_weights(head: Head, loss_type: str) -> Tensor | None:
    return weights_of(head.case, MEANS[loss_type], len(head.case.mask), HORIZON)


SETTINGS = [s for s in product(MEANS, ["token", "sequence"], [0.0, BETA]) if s[:2] != ("cispo", "sequence")]


@pytest.mark.parametrize(("loss_type", "level", "beta"), SETTINGS)
def test_liger_confirms_loss_and_gradients(head: Head, loss_type: str, level: str, beta: float):
    """Liger's cispo takes the cap of the ratio in `epsilon_high`, and has no ratio of sequences."""
    assert_every_branch_occurs(head.case, level == "sequence")
    settings: dict = {"loss_type": loss_type, "importance_sampling_level": level, "beta": beta}
    objective = Objective(**CLIP)
    if loss_type == "cispo":
        settings["epsilon_high"], objective = RATIO_CAP, cispo(RATIO_CAP)
    objective = replace(objective, ratio=level, kl_coef=beta)
    weights = our_weights(head, loss_type)
    assert_confirmed(ours(head, objective, weights), ligers(head, **settings), exact(head, objective, weights))


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_liger_confirms_truncated_sampler_weights(head: Head, level: str):
    weights = head.case.rollout_ratio().clamp(max=SAMPLER["correction_high"])
    assert ((weights == SAMPLER["correction_high"]) & head.case.mask).any()
    objective = Objective(
        **CLIP, ratio=level, kl_coef=BETA, correction="truncate", **SAMPLER
    )  # fmt: skip
    theirs = ligers(head, importance_sampling_level=level, beta=BETA, weights=weights)
    assert_confirmed(ours(head, objective), theirs, exact(head, objective))


def test_liger_confirms_dual_clip_where_its_delta_is_above_the_upper_bound(head: Head):
    objective = Objective(**CLIP, dual_clip=DUAL_CLIP)
    assert_confirmed(ours(head, objective), ligers(head, delta=DUAL_CLIP), exact(head, objective))


def test_ligers_delta_below_the_upper_bound_caps_positive_advantages_too_and_dual_clip_does_not(head: Head):
    """Dual clip (Ye 2020, eq. 5) bounds the loss of negative advantages alone."""
    delta = 1.2
    positive = replace(head, case=replace(head.case, advantages=head.case.advantages.clamp(min=0)))
    between = positive.case.mask & (positive.case.advantages > 0)[:, None]
    between &= (positive.case.ratio() > delta) & (positive.case.ratio() < 1 + CLIP["clip_high"])
    assert between.any()
    theirs, got = ligers(positive, delta=delta), ours(positive, Objective(**CLIP, dual_clip=delta))
    assert (theirs["hidden"][between] == 0).all() and (got["hidden"][between] != 0).any()
    truth = exact(positive, Objective(**CLIP))
    assert_confirmed(got, ligers(positive), truth)


def test_ligers_luspo_counts_the_padding_and_ours_does_not(head: Head):
    """luspo averages the sums of responses over responses; TRL masks the tokens first, Liger does not.

    Liger is right without padding and holes, or if the loss is one number for the whole response, which it is not with
    a divergence.
    """
    objective = Objective(**CLIP, ratio="sequence")
    weights = weights_of(head.case, "response_sum", len(head.case.mask))
    settings = {"loss_type": "luspo", "importance_sampling_level": "sequence"}
    assert_confirmed(ours(head, objective, weights), ligers(head, **settings), exact(head, objective, weights))

    with_kl = replace(objective, kl_coef=BETA)
    truth, theirs, got = (
        exact(head, with_kl, weights),
        ligers(head, **settings, beta=BETA),
        ours(head, with_kl, weights),
    )
    padding = ~head.case.mask
    assert (truth["hidden"][padding] == 0).all() and (got["hidden"][padding] == 0).all()
    assert (theirs["hidden"][padding] != 0).any()
    assert abs(float(theirs["loss"] - truth["loss"])) > 0.01 * abs(float(truth["loss"]))
    assert abs(float(got["loss"] - truth["loss"])) < 1e-5 * abs(float(truth["loss"]))


def test_garbage_outside_the_mask_spoils_ligers_gradient_and_not_ours(head: Head):
    """Liger multiplies by the mask at the end, and 0 times NaN is NaN. `ours` has NaN there in every test."""
    spoilt = head.case.old_logprobs.masked_fill(~head.case.mask, torch.nan)
    theirs = ligers(replace(head, case=replace(head.case, old_logprobs=spoilt)))
    assert torch.isnan(theirs["loss"]) and torch.isnan(theirs["weight"]).any()
    objective = Objective(**CLIP)
    assert_confirmed(ours(head, objective), ligers(head), exact(head, objective))


IN_TRITON = """
import sys
import torch
from liger_kernel.transformers.grpo_loss import triton_grpo_loss

given, results = torch.load(sys.argv[1]), {}
for level in ("token", "sequence"):
    for corrected in (False, True):
        logits = given["logits"].clone().requires_grad_()
        chosen = {"importance_sampling_level": level, "use_bias_correction_kl": corrected}
        loss, _ = triton_grpo_loss(**{**given, **chosen, "logits": logits})
        loss.backward()
        results[level, corrected] = loss.detach(), logits.grad[:, :-1]
torch.save(results, sys.argv[2])
"""


@dataclass(frozen=True)
class InTriton:
    logits: Tensor  # [N, L, V] float64
    results: dict[tuple[str, bool], tuple[Tensor, Tensor]]  # (level, corrected): loss and gradient by logits


@pytest.fixture(scope="module")
def in_triton(head: Head, tmp_path_factory: pytest.TempPathFactory) -> InTriton:
    """Results of Liger's Triton kernels, interpreted in a process of their own."""
    folder: Path = tmp_path_factory.mktemp("triton")
    case = head.case
    logits = rounded(torch.nn.functional.linear(head.hidden, head.weight, head.bias))
    given = {
        "logits": torch.nn.functional.pad(logits, (0, 0, 0, 1)).float().contiguous(),
        "old_logp": case.old_logprobs.float(),
        "ref_logp": case.ref_logprobs.float(),
        "completion_ids": head.target_ids,
        "advantages": case.advantages.float(),
        "completion_mask": case.mask.long(),
        "eps_low": CLIP["clip_low"],
        "eps_high": CLIP["clip_high"],
        "temperature": TEMPERATURE,
        "beta": BETA,
        "loss_type": "dapo",
        "inplace": False,
        "reduce": True,
    }
    torch.save(given, folder / "given.pt")
    script = [sys.executable, "-c", IN_TRITON, str(folder / "given.pt"), str(folder / "results.pt")]
    subprocess.run(script, env={**os.environ, "TRITON_INTERPRET": "1"}, check=True, timeout=60)
    return InTriton(logits, torch.load(folder / "results.pt"))


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_ligers_triton_kernel_confirms_loss_and_gradient_by_logits(head: Head, in_triton: InTriton, level: str):
    objective = Objective(**CLIP, ratio=level, kl_coef=BETA)
    ids, results = head.target_ids.flatten(), []
    for dtype, logprobs_of, loss_of in (
        (torch.float32, logprobs_from_logits, lambda *a, **k: grpo_loss(*a, **k).loss),
        (torch.float64, reference.logprobs_from_logits, reference.grpo_loss),
    ):
        logits = in_triton.logits.to(dtype, copy=True).requires_grad_()
        logprobs, _ = logprobs_of(logits.flatten(0, 1), ids, temperature=TEMPERATURE)
        options = fields_of(head, objective, dtype, None, 0.0)
        del options["temperature"]
        loss = loss_of(logprobs, **options)
        loss.backward()
        results.append((loss.detach(), logits.grad))
    for mine, other, right in zip(results[0], in_triton.results[level, False], results[1], strict=True):
        assert_as_exact(mine, other, right)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_ligers_triton_gradient_of_a_divergence_times_the_ratio_is_that_of_the_definition(
    head: Head, in_triton: InTriton, level: str
):
    """No objective of ours has `use_bias_correction_kl`: with a ratio of sequences every token's divergence moves with
    every logprob of its response, and Liger's kernel has that term."""
    case, mask = head.case, head.case.mask
    logits = in_triton.logits.clone().requires_grad_()
    logprobs = torch.log_softmax(logits / TEMPERATURE, -1).gather(-1, head.target_ids[..., None])[..., 0]
    log_ratio = logprobs - case.old_logprobs
    if level == "sequence":
        log_ratio = ((log_ratio * mask).sum(1) / case.lengths.clamp(min=1))[:, None].expand(mask.shape)
    ratio, advantages = log_ratio.exp(), case.of_tokens(case.advantages)
    clipped = ratio.clamp(1 - CLIP["clip_low"], 1 + CLIP["clip_high"])
    to_reference = case.ref_logprobs - logprobs
    divergence = ratio * (to_reference.exp() - to_reference - 1)
    losses = BETA * divergence - torch.minimum(ratio * advantages, clipped * advantages)
    loss = losses[mask].sum() / case.num_tokens
    loss.backward()
    theirs_loss, theirs_gradient = in_triton.results[level, True]
    torch.testing.assert_close(theirs_loss.double(), loss.detach(), rtol=1e-5, atol=0)
    assert float((theirs_gradient - logits.grad).abs().max()) < 1e-5 * float(logits.grad.abs().max())
