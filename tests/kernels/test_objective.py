"""The constants of an objective, what its parts mean at their edges, and how many matmuls each of them costs."""

from dataclasses import replace
from importlib import import_module
from itertools import product
from math import exp
from typing import get_args

import pytest
import torch
from fastgrpo_kernels import METRICS, Objective, cispo, dispatch, dppo, gmpo, grpo_loss, gspo, reference, sapo
from fastgrpo_kernels.dispatch import primitives_for
from fastgrpo_kernels.objective import Ratio, Surrogate
from fastgrpo_kernels.primitives import TokenFields
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from tests.kernels.cases import OBJECTIVES, make_case

DEFINED = [(s, "token") for s in get_args(Surrogate)] + [("clipped", "sequence"), ("clipped", "geometric_mean")]


@pytest.mark.parametrize(
    ("constants", "message"),
    [
        ({"clip_low": 1.5}, "clip_low <= 1"),
        ({"clip_low": -0.1, "surrogate": "dppo_kl"}, "0 <= clip_low"),
        ({"dual_clip": 0.5}, "dual_clip must be above 1"),
        ({"kl_coef": -0.1}, "kl_coef must be 0 or more"),
        ({"kl": "k4"}, "kl must be one of k1, k2, k3, got 'k4'"),
        ({"surrogate": "dppo"}, "surrogate must be one of clipped, .* did you mean dppo_"),
        ({"ratio": "geometric"}, "did you mean geometric_mean?"),
        ({"entropy_coef": float("nan")}, "entropy_coef must be a finite number"),
        ({"sapo_positive": float("inf")}, "sapo_positive must be a finite number"),
        ({"sapo_negative": 0.0}, "sapo_negative must be above 0"),
        ({"correction_low": 3.0}, "correction_low <= correction_high"),
        ({"surrogate": "cispo", "dual_clip": 3.0}, "cispo has no dual_clip, since clip_high caps its ratio"),
        ({"surrogate": "sapo", "dual_clip": 3.0}, "sapo has no dual_clip, since its gate closes by itself"),
        ({"ratio": "geometric_mean", "dual_clip": 3.0}, "geometric_mean has no dual_clip"),
    ],
)
def test_an_objective_that_means_nothing_is_refused_in_words(constants, message):
    with pytest.raises(ValueError, match=message):
        Objective(**constants)


@pytest.mark.parametrize(("surrogate", "ratio"), list(product(get_args(Surrogate), get_args(Ratio))))
def test_a_ratio_of_responses_is_refused_for_surrogates_of_tokens(surrogate, ratio):
    if (surrogate, ratio) in DEFINED:
        assert Objective(surrogate=surrogate, ratio=ratio).needs_whole_responses == (ratio != "token")
        return
    with pytest.raises(ValueError, match=f"the surrogate {surrogate} is defined by each token's own ratio"):
        Objective(surrogate=surrogate, ratio=ratio)


def test_bounds_of_a_log_ratio_and_of_a_divergence_may_be_above_1():
    assert gmpo(clip_low=1.5).clip_low == dppo("kl", 1.5).clip_low == 1.5


@pytest.mark.parametrize("objective", [*OBJECTIVES.values(), cispo(2.0), gspo(), gmpo(), sapo(), dppo(), dppo("kl")])
def test_an_op_gets_the_objective_that_its_caller_made(objective):
    assert Objective.decode(objective.encode()) == objective


def test_a_library_that_was_built_for_other_constants_says_that_it_must_be_rebuilt(monkeypatch):
    monkeypatch.setattr(Objective, "encode", lambda self: [0.0] * 12)
    with dispatch.forced("native"), pytest.raises(RuntimeError, match="got 12: rebuild it"):
        primitives_for(torch.device("cpu")).token_objective(
            torch.zeros(3), None, TokenFields(None, torch.zeros(3)), torch.tensor(3.0), Objective()
        )


def test_each_loss_by_its_name_has_its_authors_constants():
    assert gmpo() == Objective(ratio="geometric_mean", clip_low=0.4, clip_high=0.4)
    assert sapo() == Objective(surrogate="sapo", sapo_positive=1.0, sapo_negative=1.05)
    assert dppo() == Objective(surrogate="dppo_tv", clip_low=0.15, clip_high=0.15)
    assert dppo("kl", ratio_cap=20.0) == Objective(surrogate="dppo_kl", clip_low=0.05, clip_high=0.05, dual_clip=20.0)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_cases_of_these_tests_meet_every_bound_of_their_objective(name):
    objective, case = OBJECTIVES[name], make_case(3000, 4, 33)
    steps = torch.linspace(-0.8, 0.8, 3000, dtype=torch.float64)
    output = grpo_loss(
        case.ref_logprobs + steps, case.old_logprobs, case.advantages, case.response_mask, 1, objective,
        entropy=steps.abs(), ref_logprobs=case.ref_logprobs, rollout_logprobs=case.rollout_logprobs,
        cu_seqlens=case.cu_seqlens,
    )  # fmt: skip
    counted = dict(zip(METRICS, output.metrics.tolist(), strict=True))
    if objective.ratio != "sequence":  # of which there are five
        sides = ["clipped_high"] if objective.clip_low == 1 else ["clipped_low", "clipped_high"]
        sides += ["dual_clipped"] if objective.dual_clip else []
        assert all(0 < counted[side] < counted["num_tokens"] / 2 for side in sides)
    if objective.correction != "sequence_mask":
        assert (counted["corrected"] > 0) == (objective.correction != "none")


@st.composite
def objectives(draw) -> Objective:
    surrogate, ratio = draw(st.sampled_from(DEFINED))
    dual = surrogate.startswith("dppo") or (surrogate == "clipped" and ratio != "geometric_mean")
    width = st.floats(0, 0.9)
    correction = draw(st.sampled_from(["none", "truncate", "icepop", "sequence_mask"]))
    return Objective(
        surrogate=surrogate, ratio=ratio, clip_low=draw(width), clip_high=draw(width),
        dual_clip=draw(st.sampled_from([0.0, 1.2, 3.0])) if dual else 0.0,
        sapo_positive=draw(st.floats(0.1, 30)), sapo_negative=draw(st.floats(0.1, 30)),
        kl=draw(st.sampled_from(["k1", "k2", "k3"])), kl_coef=draw(st.sampled_from([0.0, 0.1])),
        entropy_coef=draw(st.sampled_from([0.0, 0.1])), correction=correction, correction_low=0.5,
    )  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(
    objective=objectives(),
    lengths=st.lists(st.integers(0, 21), min_size=1, max_size=4),  # more than a vector of C++, and none
    spread=st.sampled_from([0.05, 0.5, 15.0]),  # of log-ratios, the last beyond +-20
    seed=st.integers(0, 2**20),
)
@pytest.mark.parametrize("backend", ["plain", "native"])
def test_every_objective_is_its_definition_on_any_responses(backend, objective, lengths, spread, seed):
    generator, count = torch.Generator().manual_seed(seed), sum(lengths)

    def normal() -> torch.Tensor:
        return torch.randn(count, generator=generator, dtype=torch.float64)

    old = -normal().abs()
    logprobs = (old + spread * normal()).clamp(max=0).requires_grad_()
    advantages = normal() * (torch.rand(count, generator=generator) > 0.1)
    mask = torch.rand(count, generator=generator) > 0.2
    entropy = normal().abs().requires_grad_()
    known = {
        "response_mask": mask, "entropy": entropy, "ref_logprobs": old + 0.3 * normal(),
        "rollout_logprobs": old + 0.3 * normal(), "token_weights": normal().abs(),
        "cu_seqlens": torch.tensor([0, *lengths]).cumsum(0),
    }  # fmt: skip
    with dispatch.forced(backend):
        ours = grpo_loss(logprobs, old, advantages, num_loss_tokens=7, objective=objective, **known).loss
    definition = reference.grpo_loss(logprobs, old, advantages, 7, objective, **known)
    leaves = (logprobs, entropy) if objective.entropy_coef else (logprobs,)
    both = [(loss, *torch.autograd.grad(loss, leaves, materialize_grads=True)) for loss in (ours, definition)]
    for got, right in zip(*both, strict=True):
        torch.testing.assert_close(got, right, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("surrogate", "ratio"), DEFINED)
def test_micro_batches_of_whole_responses_sum_to_the_update(surrogate, ratio):
    case, objective = make_case(300, 4, 33), Objective(surrogate=surrogate, ratio=ratio, clip_low=0.05, clip_high=0.05)
    steps = torch.linspace(-0.8, 0.8, 300, dtype=torch.float64)
    whole = (case.ref_logprobs + steps, case.old_logprobs, case.advantages, case.response_mask)
    starts = torch.tensor([0, 10, 11, 11, 150, 300])
    expected = grpo_loss(*whole, 217, objective, cu_seqlens=starts).loss
    parts = [(0, 2), (2, 4), (4, 5)]
    total = sum(
        grpo_loss(
            *(f[starts[i] : starts[j]] for f in whole), 217, objective, cu_seqlens=starts[i : j + 1] - starts[i]
        ).loss
        for i, j in parts
    )
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("surrogate", "ratio"), DEFINED)
def test_a_token_exactly_on_its_bound_keeps_its_gradient_and_is_not_counted(backend, device, surrogate, ratio):
    """On policy with bounds of 0; GMPO also at a width that floats hold."""
    zeros = torch.zeros(6, device=device)
    advantages = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, -1.0], device=device)
    starts = torch.tensor([0, 3, 6], device=device)
    objective = Objective(surrogate=surrogate, ratio=ratio, clip_low=0.0, clip_high=0.0)
    wide = replace(objective, clip_low=0.25, clip_high=0.25)
    moved = 0.25 * advantages if ratio == "geometric_mean" else zeros
    for logprobs, chosen in ((zeros, objective), (moved, wide)):
        leaf = (logprobs - 1).requires_grad_()
        output = grpo_loss(leaf, zeros - 1, advantages, None, 6, chosen, cu_seqlens=starts)
        output.loss.backward()
        torch.testing.assert_close(leaf.grad, -advantages * output.ratio / 6)
        assert output.metrics[1:4].tolist() == [0, 0, 0]


@pytest.mark.parametrize(("surrogate", "ratio"), DEFINED)
def test_an_advantage_of_0_teaches_nothing_and_is_not_counted(backend, device, surrogate, ratio):
    logprobs = torch.linspace(-3.0, 0.0, 7, device=device).requires_grad_()
    objective = Objective(surrogate=surrogate, ratio=ratio, clip_low=0.01, clip_high=0.01)
    starts, zeros = torch.tensor([0, 7], device=device), torch.zeros(7, device=device)
    output = grpo_loss(logprobs, zeros - 1.5, zeros, None, 7, objective, cu_seqlens=starts)
    output.loss.backward()
    assert output.loss == 0 and (logprobs.grad == 0).all() and output.metrics[1:4].tolist() == [0, 0, 0]


@pytest.mark.parametrize(("surrogate", "ratio"), DEFINED)
@pytest.mark.parametrize("place", [0, 3])
def test_nan_of_one_token_stays_nan_and_reaches_no_other_response(backend, device, surrogate, ratio, place):
    """At the first token the advantage is positive, at the fourth it is negative."""
    old = torch.full((8,), -1.0, device=device)
    logprobs = torch.linspace(-2.0, -0.1, 8, device=device)
    logprobs[place] = torch.nan
    logprobs.requires_grad_()
    advantages = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, 1.0, 1.0, 1.0], device=device)
    objective = Objective(surrogate=surrogate, ratio=ratio)
    starts = torch.tensor([0, 3, 5, 8], device=device)
    output = grpo_loss(logprobs, old, advantages, None, 8, objective, cu_seqlens=starts)
    output.loss.backward()
    assert torch.isnan(output.loss) and torch.isnan(logprobs.grad[place]) and torch.isfinite(logprobs.grad[5:]).all()


@pytest.mark.parametrize(("surrogate", "ratio"), DEFINED)
def test_log_ratios_beyond_twenty_leave_everything_finite(backend, device, surrogate, ratio):
    """Nothing flows through a ratio there; a detached one is held at exp(20) and still weighs its logprob."""
    logprobs = torch.tensor([-100.0, -0.5, -1e4, -0.5], device=device).requires_grad_()
    old = torch.tensor([-0.5, -100.0, -0.5, -1e4], device=device)
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0], device=device)
    objective = Objective(surrogate=surrogate, ratio=ratio)
    output = grpo_loss(logprobs, old, advantages, None, 4, objective, cu_seqlens=torch.arange(5, device=device))
    output.loss.backward()
    assert torch.isfinite(output.loss) and torch.isfinite(logprobs.grad).all()
    fallen, risen = {"cispo": (0.8, 1.28), "dppo_tv": (exp(-20), exp(20)), "dppo_kl": (exp(-20), exp(20))}.get(
        surrogate, (0.0, 0.0)
    )
    expected = torch.tensor([-fallen, risen, -fallen, risen]) / 4
    torch.testing.assert_close(logprobs.grad.cpu(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("ratio", ["sequence", "geometric_mean"])
def test_a_response_of_one_token_has_its_tokens_own_ratio(backend, device, ratio):
    """And one of none has no part in the loss; GMPO's clip is the token's, but for its bounds in log space."""
    old, new = torch.full((4,), -1.0, device=device), torch.tensor([-1.5, -1.1, -0.9, -0.5], device=device)
    advantages, starts = torch.tensor([1.0, -1.0, 1.0, -1.0], device=device), torch.tensor([0, 0, 1, 2, 3, 4, 4])
    results = []
    for objective in (Objective(clip_low=0.2, clip_high=0.2), Objective(ratio=ratio, clip_low=0.2, clip_high=0.2)):
        leaf = new.clone().requires_grad_()
        output = grpo_loss(leaf, old, advantages, None, 4, objective, cu_seqlens=starts.to(device))
        output.loss.backward()
        results.append((output.loss.detach(), leaf.grad, output.ratio))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("tau", [0.5, 1.0, 8.0])
def test_sapos_gate_is_1_on_policy_and_counts_as_clipped_below_half(backend, device, tau):
    """``4 s (1 - s)`` is ``1 / cosh(tau (ratio - 1) / 2) ** 2``: half at a distance of arccosh(sqrt 2) * 2 / tau."""
    ratios = torch.tensor([1e-6, 0.5, 0.9, 1.0, 1.1, 1.5, 3.0, 9.0], device=device)
    logprobs = (ratios.log() - 15).requires_grad_()
    signs = torch.tensor([1.0, -1.0] * 4, device=device)
    output = grpo_loss(logprobs, torch.full_like(ratios, -15.0), signs, None, 1, sapo(tau, tau))
    output.loss.backward()
    gate = 1 / (tau * (ratios.double() - 1) / 2).cosh().square()
    torch.testing.assert_close(-logprobs.grad.double() * signs / ratios, gate, rtol=1e-4, atol=1e-6)
    expected = [((gate < 0.5) & (ratios < 1)).sum(), ((gate < 0.5) & (ratios > 1)).sum(), 0]
    assert output.metrics[1:4].tolist() == [float(x) for x in expected]


def test_dppo_lets_a_rare_token_grow_and_holds_a_frequent_one(backend, device):
    """1e-5 to 1e-3 is a ratio of 100 and hardly any divergence; 0.99 to 0.8 is a ratio of 0.81 and a large one."""
    old, new = torch.tensor([1e-5, 0.99], device=device).log(), torch.tensor([1e-3, 0.8], device=device).log()
    advantages = torch.tensor([1.0, -1.0], device=device)
    for objective in (dppo("tv"), dppo("kl")):
        leaf = new.clone().requires_grad_()
        output = grpo_loss(leaf, old, advantages, None, 1, objective)
        output.loss.backward()
        torch.testing.assert_close(leaf.grad.cpu(), torch.tensor([-100.0, 0.0]), rtol=1e-5, atol=0)
        assert output.metrics[1:4].tolist() == [1, 0, 0]


def test_a_token_that_dppo_masks_is_not_counted_as_capped_too(backend, device):
    old, new = torch.tensor([0.1, 1e-5], device=device).log(), torch.tensor([0.2, 1e-3], device=device).log()
    leaf, ones = new.requires_grad_(), torch.ones(2, device=device)
    output = grpo_loss(leaf, old, ones, None, 1, dppo("tv", 0.05, ratio_cap=1.5))
    output.loss.backward()
    assert leaf.grad.tolist() == [0, -1.5] and output.metrics[1:4].tolist() == [0, 1, 1]


def test_a_divergence_exactly_on_its_bound_keeps_its_gradient(backend, device):
    """Between a probability that is 1 and one that is 0 to every float."""
    certain, impossible = torch.zeros(1, device=device), torch.full((1,), -2000.0, device=device)
    for old, new, advantage in ((impossible, certain, 1.0), (certain, impossible, -1.0)):
        for bound, kept in ((1.0, True), (0.999, False)):
            leaf = new.clone().requires_grad_()
            grpo_loss(leaf, old, torch.full_like(old, advantage), None, 1, dppo("tv", bound)).loss.backward()
            assert bool(leaf.grad != 0) == kept


@pytest.mark.parametrize(("surrogate", "ratio"), DEFINED)
@pytest.mark.parametrize(("chunk_tokens", "chunks"), [(64, 1), (16, 4)])
def test_only_a_ratio_of_responses_over_several_chunks_takes_a_fourth_matmul(surrogate, ratio, chunk_tokens, chunks):
    """Counted from the FLOPs that the op runs: three are the logits, and the gradients of hidden states and weight."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 8, generator=generator) for n in (64, 101))
    ids, field = torch.arange(64), torch.randn(64, generator=generator)
    objective, starts = Objective(surrogate=surrogate, ratio=ratio), torch.tensor([0, 5, 5, 40, 64])
    op = import_module("fastgrpo_kernels.linear_grpo")._linear_grpo._init_fn
    for needed, saved in ((True, 0), (False, 2)):
        with FlopCounterMode(display=False) as counter:
            op(
                hidden, weight, None, ids, 1.0, None, 0.0, chunk_tokens, None, field, None, None, None, None,
                starts if objective.needs_whole_responses else None, torch.tensor(64.0), objective.encode(), False,
                needed, needed, False,
            )  # fmt: skip
        again = needed and chunks > 1 and ratio != "token"
        assert counter.get_total_flops() == (3 - saved + again) * 2 * 64 * 8 * 101
