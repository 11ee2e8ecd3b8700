"""`linear_grpo`: every option against the float64 definition, and what a caller may rely on."""

import sys
from dataclasses import replace

import pytest
import torch
from fastgrpo_kernels import (
    METRICS,
    Objective,
    group_advantages,
    grpo_loss,
    head,
    linear_grpo,
    linear_logprobs,
)
from fastgrpo_kernels.head import exponentials, gradients, logits
from fastgrpo_kernels.head.matmuls import multiply

from tests.kernels.cases import (
    OBJECTIVES,
    assert_as_exact_as_torch,
    make_case,
    value_and_gradients,
)


def check(case, objective, dtype, device, **options):
    shared = {k: v for k, v in options.items() if k in ("temperature", "softcap")}
    ours = value_and_gradients(case.to(dtype, device), lambda c: c.ours(objective, **options).loss)
    torchs = value_and_gradients(case.to(dtype), lambda c: c.definition(objective, **shared))
    oracle = value_and_gradients(case.to(torch.float64), lambda c: c.definition(objective, **shared))
    assert_as_exact_as_torch(ours, torchs, oracle, largest_terms=1.0)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("on_policy", [False, True])
def test_every_objective_is_as_exact_as_plain_torch(backend, device, name, on_policy):
    case = make_case(37, 24, 257, on_policy=on_policy, temperature=0.7)
    check(case, OBJECTIVES[name], torch.float32, device, temperature=0.7, chunk_tokens=16)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("backend", ["plain", "native"], indirect=True)
def test_in_float64_every_objective_is_the_definition(backend, name):
    case = make_case(63, 24, 257)
    ours = value_and_gradients(case.to(torch.float64), lambda c: c.ours(OBJECTIVES[name], chunk_tokens=20).loss)
    oracle = value_and_gradients(case.to(torch.float64), lambda c: c.definition(OBJECTIVES[name]))
    for got, right in zip(ours, oracle, strict=True):
        torch.testing.assert_close(got, right, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_weights_are_as_exact_as_plain_torch(backend, device, dtype):
    case = make_case(33, 24, 257, dtype=dtype)
    check(case, OBJECTIVES["k3"], dtype, device, chunk_tokens=16)


def test_half_precision_gradients_do_not_vanish_under_a_large_token_count(backend, device):
    """A probability over a million is below float16's smallest number; a loss scale brings it back."""
    case = replace(make_case(20, 16, 257, dtype=torch.float16), num_loss_tokens=1_000_000)
    half = value_and_gradients(case.to(torch.float16, device), lambda c: 65536.0 * c.ours(Objective()).loss)
    oracle = value_and_gradients(case.to(torch.float64), lambda c: 65536.0 * c.definition(Objective()))
    for got, right in zip(half[1:], oracle[1:], strict=True):
        assert float((got.double().cpu() - right).norm() / right.norm()) < 3e-3


@pytest.mark.parametrize(
    ("num_tokens", "vocabulary"), [(0, 257), (1, 50257), (2, 129920), (3, 151936), (2, 152064), (1000, 300)]
)
def test_every_size(backend, device, num_tokens, vocabulary):
    if backend == "gpu" and device.type == "cpu":
        num_tokens = min(num_tokens, 40)  # the interpreter is slow
    case = make_case(num_tokens, 20, vocabulary, bias=False)
    check(case, OBJECTIVES["dual_clip"], torch.float32, device)


@pytest.mark.parametrize("temperature", [0.6, "per token"])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_temperature_and_softcap(backend, device, temperature, softcap):
    case = make_case(30, 24, 257)
    if temperature == "per token":
        temperature = torch.linspace(0.5, 2.0, 30)
        options = {"temperature": temperature.to(device), "softcap": softcap}
    else:
        options = {"temperature": temperature, "softcap": softcap}
    objective = OBJECTIVES["entropy" if softcap else "plain"]
    ours = value_and_gradients(
        case.to(torch.float32, device), lambda c: c.ours(objective, chunk_tokens=16, **options).loss
    )
    if isinstance(temperature, torch.Tensor):
        options["temperature"] = temperature.cpu()
    torchs = value_and_gradients(case.to(torch.float32), lambda c: c.definition(objective, **options))
    oracle = value_and_gradients(case.to(torch.float64), lambda c: c.definition(objective, **options))
    assert_as_exact_as_torch(ours, torchs, oracle, largest_terms=1.0)


@pytest.mark.parametrize("shift", [-1e4, 0.0, 1e4])
@pytest.mark.parametrize("scale", [1.0, 1e3])
@pytest.mark.parametrize("name", ["cispo", "entropy"])  # of exponentials, and of logits
def test_extreme_logits_leave_everything_finite_and_right(backend, device, shift, scale, name):
    """Logits are all very negative, or all very positive, or one token has all the probability."""
    case = make_case(20, 16, 257, scale=scale)
    case = replace(case, bias=case.bias + shift)
    ours = value_and_gradients(case.to(torch.float32, device), lambda c: c.ours(OBJECTIVES[name]).loss)
    torchs = value_and_gradients(case.to(torch.float32), lambda c: c.definition(OBJECTIVES[name]))
    oracle = value_and_gradients(case.to(torch.float64), lambda c: c.definition(OBJECTIVES[name]))
    assert all(torch.isfinite(t).all() for t in ours)
    # The logits themselves carry the rounding of 1e4 in float32.
    assert_as_exact_as_torch(ours, torchs, oracle, largest_terms=max(1.0, abs(shift), scale))


def test_memory_that_nobody_wrote_is_not_read(backend, device):
    """Deterministic algorithms make torch fill new memory with NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        for objective in (OBJECTIVES["everything"], OBJECTIVES["icepop"]):
            check(make_case(30, 24, 257), objective, torch.float32, device, chunk_tokens=8, entropy=True)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", ["icepop", "everything"])
def test_what_stands_outside_the_mask_does_not_matter(backend, device, name):
    case = make_case(30, 24, 257)
    clean = value_and_gradients(case.to(torch.float32, device), lambda c: c.ours(OBJECTIVES[name]).loss)
    outside = ~case.response_mask
    spoilt = {
        name: getattr(case, name).masked_fill(outside, torch.nan)
        for name in ("old_logprobs", "advantages", "ref_logprobs", "rollout_logprobs", "token_weights")
    }
    dirty = value_and_gradients(
        replace(case, **spoilt).to(torch.float32, device), lambda c: c.ours(OBJECTIVES[name]).loss
    )
    for a, b in zip(clean, dirty, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["icepop", "everything"])
def test_results_repeat_bit_for_bit(backend, device, name):
    case = make_case(200, 24, 257).to(torch.float32, device)
    runs = [value_and_gradients(case, lambda c: c.ours(OBJECTIVES[name], chunk_tokens=64).loss) for _ in range(3)]
    for again in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], again, strict=True))


def test_non_contiguous_inputs(backend, device):
    case = make_case(30, 24, 257).to(torch.float32, device)
    expected = value_and_gradients(case, lambda c: c.ours(OBJECTIVES["k3"]).loss)
    wide = torch.zeros(30, 48, device=device)
    wide[:, ::2] = case.hidden.detach()
    turned = replace(
        case,
        hidden=wide[:, ::2].requires_grad_(),
        weight=case.weight.detach().T.contiguous().T.requires_grad_(),
        advantages=torch.stack([case.advantages] * 2, 1)[:, 0],
        target_ids=torch.stack([case.target_ids] * 2, 1)[:, 0],
        bias=torch.stack([case.bias.detach()] * 2, 1)[:, 0].requires_grad_(),
    )
    assert not turned.hidden.is_contiguous() and not turned.weight.is_contiguous()
    got = value_and_gradients(turned, lambda c: c.ours(OBJECTIVES["k3"]).loss)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("frozen", [("weight", "bias"), ("hidden",), ("weight",)])
def test_what_is_frozen_gets_no_gradient_and_changes_no_other(backend, device, frozen):
    case = make_case(30, 24, 257).to(torch.float32, device)
    _, *gradients = value_and_gradients(case, lambda c: c.ours(Objective()).loss)
    full = dict(zip(("hidden", "weight", "bias"), gradients, strict=True))
    for name in frozen:
        getattr(case, name).requires_grad_(False).grad = None
    case.ours(Objective()).loss.backward()
    for name, gradient in full.items():
        found = getattr(case, name).grad
        assert found is None if name in frozen else torch.equal(found, gradient)


def test_without_gradients_nothing_is_formed(backend, device):
    case = make_case(30, 24, 257).to(torch.float32, device)
    with torch.no_grad():
        output = case.ours(Objective(), entropy=True)
    assert not output.loss.requires_grad
    torch.testing.assert_close(output.loss, case.ours(Objective()).loss.detach())


def test_a_tied_weight_gets_both_gradients():
    weight = torch.randn(257, 24, requires_grad=True)
    ids, advantages = torch.randint(257, (30,)), torch.randn(30)

    def loss(hidden):
        return linear_grpo(hidden, weight, ids, None, advantages, None, 30).loss

    loss(torch.nn.functional.embedding(ids, weight)).backward()
    tied, weight.grad = weight.grad, None
    embedded = torch.nn.functional.embedding(ids, weight.detach()).requires_grad_()
    loss(embedded).backward()
    separate = weight.grad.index_add(0, ids, embedded.grad)
    torch.testing.assert_close(tied, separate)


def test_micro_batches_add_up_and_an_upstream_factor_counts(backend, device):
    case = make_case(40, 24, 257).to(torch.float64 if backend != "gpu" else torch.float32, device)
    objective = Objective()
    whole = value_and_gradients(case, lambda c: 3.0 * c.ours(objective).loss)[1:]
    case.hidden.grad = case.weight.grad = case.bias.grad = None
    for rows in (slice(0, 13), slice(13, 40)):
        linear_grpo(
            case.hidden[rows], case.weight, case.target_ids[rows], case.old_logprobs[rows], case.advantages[rows],
            case.response_mask[rows], case.num_loss_tokens, objective, bias=case.bias,
            token_weights=case.token_weights[rows],
        ).loss.mul(3.0).backward()  # fmt: skip
    for leaf, expected in zip(case.leaves, whole, strict=True):
        torch.testing.assert_close(leaf.grad, expected, rtol=1e-4, atol=1e-6)


def test_a_second_backward_pass_is_refused():
    case = make_case(10, 8, 33).to(torch.float32)
    loss = case.ours(Objective()).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("name", ["plain", "everything"])
def test_on_a_cpu_tokens_outside_the_mask_enter_no_matmul(monkeypatch, name):
    case = make_case(40, 24, 257).to(torch.float64)
    computed = []
    for module in (exponentials, logits):
        monkeypatch.setattr(module, "multiply", lambda a, b, out: (computed.append(len(a)), multiply(a, b, out)))
    found = value_and_gradients(case, lambda c: c.ours(OBJECTIVES[name]).loss)
    assert sum(computed) == case.response_mask.sum() < 40
    everywhere = value_and_gradients(case, lambda c: c.definition(OBJECTIVES[name]))
    for got, expected in zip(found, everywhere, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-13)
    output = case.ours(OBJECTIVES[name], entropy=True)
    for values in (output.logprobs, output.entropy, output.ratio):
        assert ((values != 0) == case.response_mask).all()


@pytest.mark.parametrize("name", ["plain", "gspo", "everything"])
def test_an_id_that_is_none_is_refused_on_a_cpu_and_outside_the_mask_nothing_on_a_gpu(
    monkeypatch, backend, device, name
):
    """Many stacks write -100 there."""
    case = make_case(30, 24, 257).to(torch.float32, device)
    outside, inside = (int(where.nonzero()[2, 0]) for where in (~case.response_mask, case.response_mask))
    clean = value_and_gradients(case, lambda c: c.ours(OBJECTIVES[name], chunk_tokens=8).loss)
    case.target_ids[outside] = -100
    if backend == "gpu":
        monkeypatch.setattr(sys.modules["fastgrpo_kernels.linear_grpo"], "readable", lambda _: False)
    marked = value_and_gradients(case, lambda c: c.ours(OBJECTIVES[name], chunk_tokens=8).loss)
    for a, b in zip(clean, marked, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    case.target_ids[inside] = 257
    if backend == "gpu":
        assert torch.isnan(case.ours(OBJECTIVES[name]).logprobs[inside])
    else:
        with pytest.raises((ValueError, RuntimeError), match=r"outside the vocabulary of 257|out of bounds"):
            case.ours(OBJECTIVES[name])


def test_nan_of_a_broken_model_stays_nan(backend, device):
    """Clipping must not turn it into a number: the trainer skips an update that is not finite."""
    for objective in (Objective(), OBJECTIVES["everything"]):
        case = make_case(20, 16, 65).to(torch.float32, device)
        inside = int(case.response_mask.nonzero()[3, 0])
        with torch.no_grad():
            case.hidden[inside] = torch.nan
        output = case.ours(objective, entropy=True)
        output.loss.backward()
        assert torch.isnan(output.loss) and torch.isnan(case.hidden.grad[inside]).any()


def test_float16_sums_beyond_its_range_are_divided_first(backend, device):
    """The sum over 400 tokens is beyond 65,504 before it is divided by their number."""
    hidden = torch.full((400, 4), 1000.0, dtype=torch.float16, device=device)
    ids, advantages = torch.zeros(400, dtype=torch.int64, device=device), torch.ones(400, device=device)

    def gradient(num_loss_tokens: int) -> torch.Tensor:
        weight = torch.zeros(9, 4, dtype=torch.float16, device=device).requires_grad_()
        linear_grpo(hidden, weight, ids, None, advantages, None, num_loss_tokens, chunk_tokens=100).loss.backward()
        return weight.grad[0].float().cpu()

    torch.testing.assert_close(gradient(400), torch.full((4,), -1000 * 8 / 9), rtol=2e-3, atol=0)
    assert gradient(1).isinf().all()


def test_a_chunk_whose_tokens_are_all_clipped_has_no_gradient_matmuls(monkeypatch):
    case = make_case(40, 24, 257).to(torch.float32)
    with torch.no_grad():
        logprobs, _ = linear_logprobs(case.hidden, case.weight, case.target_ids, bias=case.bias)
    old = torch.where(torch.arange(40) < 20, logprobs - 3.0 * case.advantages.sign(), logprobs)
    added = []
    add = head.HeadGradients.add
    monkeypatch.setattr(head.HeadGradients, "add", lambda g, rows, d: (added.append(rows), add(g, rows, d)))
    linear_grpo(
        case.hidden, case.weight, case.target_ids, old, case.advantages, None, 40, bias=case.bias, chunk_tokens=20
    ).loss.backward()
    assert added == [slice(20, 40)]
    assert (case.hidden.grad[:20] == 0).all() and (case.hidden.grad[20:] != 0).any()


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("name", ["plain", "cispo", "k3", "gspo"])
def test_on_a_cpu_tokens_without_advantage_enter_one_matmul_or_none(monkeypatch, name, skip):
    case = make_case(60, 24, 257).to(torch.float64)
    case = replace(case, advantages=torch.where(torch.arange(60) % 5 < 3, 0.0, case.advantages))
    inside, signal = case.response_mask, case.response_mask & (case.advantages != 0)
    by_advantage = name in ("plain", "cispo")  # a divergence acts on every token, a response's ratio is of all tokens
    forward, backward = [], []
    monkeypatch.setattr(exponentials, "multiply", lambda a, b, out: (forward.append(len(a)), multiply(a, b, out)))
    scale = gradients.scale

    def watched(rows, factors, out):
        backward.append(len(rows))
        return scale(rows, factors, out)

    monkeypatch.setattr(gradients, "scale", watched)
    found = value_and_gradients(
        case, lambda c: c.ours(OBJECTIVES[name], skip_zero_advantage=skip, chunk_tokens=16).loss
    )
    for got, expected in zip(found, value_and_gradients(case, lambda c: c.definition(OBJECTIVES[name])), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-13)
    if by_advantage:
        assert sum(forward) == (signal if skip else inside).sum()
        assert 0 < sum(backward) <= 2 * signal.sum()  # a clipped one at an end has no derivative either
    output = case.ours(OBJECTIVES[name], skip_zero_advantage=skip)
    assert torch.equal(output.logprobs != 0, signal if skip and by_advantage else inside)


def test_from_rewards_to_gradients_is_one_call(backend, device):
    case = make_case(60, 24, 257).to(torch.float32, device)
    cu_seqlens = torch.tensor([0, 9, 20, 20, 31, 44, 60], device=device)
    rewards = torch.tensor([1.0, -1.0, 0.5, 1.0, 1.0, -1.0], device=device)
    advantages = group_advantages(rewards, cu_groups=torch.tensor([0, 3, 6], device=device))
    of_tokens = advantages.repeat_interleave(cu_seqlens.diff())
    for grouping in ({"cu_groups": torch.tensor([0, 3, 6], device=device)}, {"group_size": 3}):
        got = linear_grpo(case.hidden, case.weight, case.target_ids, case.old_logprobs, None, None, 60,
                          cu_seqlens=cu_seqlens, rewards=rewards, **grouping)  # fmt: skip
        expected = linear_grpo(case.hidden, case.weight, case.target_ids, case.old_logprobs, of_tokens, None, 60)
        assert torch.equal(got.loss, expected.loss) and torch.equal(got.metrics, expected.metrics)


def test_outputs_are_those_of_the_separate_ops(backend, device):
    case = make_case(50, 24, 257).to(torch.float32, device)
    objective = OBJECTIVES["everything"]
    fused = case.ours(objective, entropy=True, chunk_tokens=16)
    logprobs, entropy = linear_logprobs(case.hidden, case.weight, case.target_ids, bias=case.bias, entropy=True)
    separate = grpo_loss(
        logprobs, case.old_logprobs, case.advantages, case.response_mask, case.num_loss_tokens, objective,
        entropy=entropy, ref_logprobs=case.ref_logprobs, rollout_logprobs=case.rollout_logprobs,
        token_weights=case.token_weights, cu_seqlens=case.cu_seqlens,
    )  # fmt: skip
    close = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(fused.loss, separate.loss, **close)
    torch.testing.assert_close(fused.ratio, separate.ratio, **close)
    torch.testing.assert_close(fused.metrics, separate.metrics, **close)
    torch.testing.assert_close(fused.logprobs, torch.where(case.response_mask, logprobs, 0), **close)
    torch.testing.assert_close(fused.entropy, torch.where(case.response_mask, entropy, 0), **close)
    counted = dict(zip(METRICS, fused.metrics.tolist(), strict=True))
    assert counted["num_tokens"] == case.response_mask.sum()
    assert all(counted[name] > 0 for name in ("ratio", "entropy", "kl_ref"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"temperature": torch.ones(3)}, "one per token"),
        ({"temperature": torch.zeros(10)}, "every token's temperature must be above 0"),
        ({"softcap": -1.0}, "softcap must be above 0"),
        (
            {"advantages": None, "rewards": torch.ones(2), "group_size": 2, "cu_seqlens": torch.tensor([0, 4, 9])},
            "cu_seqlens must run from 0 to 10",
        ),
        ({"chunk_tokens": 0}, "chunk_tokens must be above 0"),
        ({"advantages": None}, "rewards and cu_seqlens are needed"),
        ({"objective": Objective(kl_coef=0.1)}, "kl_coef 0.1 needs ref_logprobs"),
        ({"objective": Objective(correction="icepop")}, "needs rollout_logprobs"),
        ({"objective": Objective(ratio="sequence")}, "needs cu_seqlens"),
        ({"target_ids": torch.zeros(3, dtype=torch.int64)}, r"need hidden \[T, D\]"),
        ({"target_ids": torch.zeros(10, dtype=torch.int32)}, "must be int64"),
        ({"weight": torch.zeros(5, 4, dtype=torch.float64)}, "one floating dtype"),
        ({"response_mask": torch.ones(10)}, "response_mask must be bool"),
        ({"response_mask": torch.ones(9, dtype=torch.bool)}, r"response_mask must be \[T\] = \[10\]"),
        ({"response_mask": torch.ones(10, dtype=torch.bool, device="meta")}, "response_mask must be on cpu, got meta"),
        ({"rewards": torch.ones(2)}, "advantages or rewards, not both"),
        ({"old_logprobs": torch.ones(9)}, r"old_logprobs must be \[T\]"),
        ({"num_loss_tokens": 0}, "num_loss_tokens must be above 0"),
        ({"num_loss_tokens": torch.tensor(-3)}, "num_loss_tokens must be above 0"),
        ({"softcap": float("inf")}, "softcap must be above 0 and finite"),
        (
            {"objective": Objective(ratio="sequence"), "cu_seqlens": torch.tensor([0, 5, 3, 10])},
            "cu_seqlens must run from 0 to 10 and never fall",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_words(change, message):
    inputs = {
        "hidden": torch.zeros(10, 4), "weight": torch.zeros(5, 4), "target_ids": torch.zeros(10, dtype=torch.int64),
        "old_logprobs": None, "advantages": torch.zeros(10), "response_mask": None, "num_loss_tokens": 10,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        linear_grpo(**{**inputs, **change})
