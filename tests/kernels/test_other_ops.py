"""`grpo_loss`, `group_advantages`, `logprobs_from_logits` and `linear_logprobs` on every backend."""

import pytest
import torch
from fastgrpo_kernels import Objective, group_advantages, grpo_loss, linear_logprobs, logprobs_from_logits, reference

from tests.kernels.cases import OBJECTIVES, assert_as_exact_as_torch, make_case


def loss_and_gradients(function, case, objective, dtype, device="cpu"):
    """Loss and gradients for logprobs near the case's old ones, and for an entropy."""
    case = case.to(dtype, device)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    steps = torch.linspace(-0.8, 0.8, len(case.target_ids), dtype=torch.float64)
    logprobs = (case.ref_logprobs.double().cpu() + steps).float().to(device, wide).requires_grad_()
    entropy = steps.abs().float().to(device, wide).requires_grad_()
    fields = {
        "response_mask": case.response_mask, "ref_logprobs": case.ref_logprobs, "token_weights": case.token_weights,
        "rollout_logprobs": case.rollout_logprobs, "cu_seqlens": case.cu_seqlens, "entropy": entropy,
    }  # fmt: skip
    loss = function(logprobs, case.old_logprobs, case.advantages, num_loss_tokens=19, objective=objective, **fields)
    loss = getattr(loss, "loss", loss)
    loss.backward()
    return [loss.detach(), logprobs.grad, torch.zeros_like(entropy) if entropy.grad is None else entropy.grad]


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("num_tokens", [0, 1, 63, 3000])
def test_grpo_loss_is_as_exact_as_plain_torch(backend, device, name, num_tokens):
    case, objective = make_case(num_tokens, 4, 33), OBJECTIVES[name]
    ours = loss_and_gradients(grpo_loss, case, objective, torch.float32, device)
    torchs = loss_and_gradients(reference.grpo_loss, case, objective, torch.float32)
    oracle = loss_and_gradients(reference.grpo_loss, case, objective, torch.float64)
    assert_as_exact_as_torch(ours, torchs, oracle, largest_terms=1.0)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("backend", ["plain", "native"], indirect=True)
def test_gradient_of_grpo_loss_is_that_of_finite_differences(backend, name):
    """The tokens are farther from every bound than the step of the differences."""
    case, objective = make_case(40, 4, 33).to(torch.float64), OBJECTIVES[name]
    logprobs = (case.old_logprobs + torch.linspace(-0.9, 0.9, 40, dtype=torch.float64)).requires_grad_()
    entropy = torch.rand(40, dtype=torch.float64, requires_grad=True)

    def loss(logprobs, entropy):
        return grpo_loss(
            logprobs, case.old_logprobs, case.advantages, case.response_mask, 19, objective, entropy=entropy,
            ref_logprobs=case.ref_logprobs, rollout_logprobs=case.rollout_logprobs, cu_seqlens=case.cu_seqlens,
            token_weights=case.token_weights,
        ).loss  # fmt: skip

    inputs = (logprobs, entropy) if objective.entropy_coef else (logprobs, entropy.detach())
    if objective.surrogate in ("cispo", "dppo_tv", "dppo_kl"):  # whose weight is detached: not the value's derivative
        gradient = torch.autograd.grad(loss(*inputs), logprobs)[0]
        definition = reference.grpo_loss(
            logprobs, case.old_logprobs, case.advantages, 19, objective, response_mask=case.response_mask,
            ref_logprobs=case.ref_logprobs, rollout_logprobs=case.rollout_logprobs, cu_seqlens=case.cu_seqlens,
            token_weights=case.token_weights, entropy=entropy,
        )  # fmt: skip
        torch.testing.assert_close(gradient, torch.autograd.grad(definition, logprobs)[0], rtol=1e-10, atol=1e-13)
    else:
        assert torch.autograd.gradcheck(loss, inputs, eps=1e-7, atol=1e-6)


def test_log_ratios_beyond_float32s_exp_leave_everything_finite(backend, device):
    logprobs = torch.tensor([-1e4, -100.0, 100.0, 1e4, 0.1], device=device).requires_grad_()
    advantages = torch.tensor([1.0, -1.0, -1.0, 1.0, 1.0], device=device)
    zeros = torch.zeros(5, device=device)
    objective = Objective(kl="k3", kl_coef=0.1, correction="icepop", correction_high=5.0)
    output = grpo_loss(logprobs, zeros, advantages, None, 5, objective, ref_logprobs=zeros, rollout_logprobs=zeros)
    output.loss.backward()
    assert torch.isfinite(output.loss) and torch.isfinite(logprobs.grad).all()
    assert (logprobs.grad[:4] == 0).all() and logprobs.grad[4] != 0


GROUPS = {"pairs": [2] * 30, "eights": [8] * 9, "ragged": [1, 7, 1, 64, 3, 0, 2, 1500, 5], "one": [1], "none": []}


@pytest.mark.parametrize("lengths", GROUPS)
@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("binary", [True, False])
def test_group_advantages_follow_the_definition(backend, device, lengths, baseline, scale, binary):
    lengths = GROUPS[lengths]
    generator = torch.Generator().manual_seed(sum(lengths))
    rewards = torch.randn(sum(lengths), generator=generator)
    rewards = rewards.sign() if binary else rewards
    cu_groups = torch.tensor([0, *torch.tensor(lengths, dtype=torch.int64).cumsum(0).tolist()], device=device)
    got = group_advantages(rewards.to(device), cu_groups=cu_groups, baseline=baseline, scale=scale)
    options = {"baseline": baseline, "scale": scale}
    oracle = reference.group_advantages(rewards.double(), lengths, **options)
    torchs = reference.group_advantages(rewards, lengths, **options)
    assert_as_exact_as_torch([got], [torchs], [oracle])
    if lengths and len(set(lengths)) == 1:
        equal = group_advantages(rewards.to(device), lengths[0], baseline=baseline, scale=scale)
        assert_as_exact_as_torch([equal], [torchs], [oracle])


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("value", [0.1, 1 / 3, -1.0, 1e9, 1e-9])
def test_equal_rewards_and_single_responses_give_exactly_zero(backend, device, scale, value):
    rewards = torch.full((25,), value, device=device)
    rewards[24] = 7.0  # alone in its group
    cu_groups = torch.tensor([0, 8, 24, 25], device=device)
    assert (group_advantages(rewards, cu_groups=cu_groups, scale=scale) == 0).all()


def test_groups_larger_than_a_block(backend, device):
    rewards = torch.randn(3 * 5000)
    got = group_advantages(rewards.to(device), 5000)
    oracle = reference.group_advantages(rewards.double(), [5000] * 3)
    assert_as_exact_as_torch([got], [reference.group_advantages(rewards, [5000] * 3)], [oracle])


def test_groups_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="7 rewards are not groups of 2"):
        group_advantages(torch.zeros(7), 2)
    with pytest.raises(ValueError, match="give group_size, or cu_groups"):
        group_advantages(torch.zeros(7))
    with pytest.raises(ValueError, match="cu_groups must run from 0 to 7"):
        group_advantages(torch.zeros(7), cu_groups=torch.tensor([0, 3, 9]))


def statistics(function, logits, target_ids, **options):
    logprobs, entropy = function(logits, target_ids, **options)
    coefficients = torch.linspace(-1, 1, len(target_ids), device=logprobs.device, dtype=logprobs.dtype)
    ((logprobs * coefficients).sum() + 0.3 * (entropy * coefficients.flip(0)).sum()).backward()
    return [logprobs.detach(), entropy.detach(), logits.grad]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("num_tokens", "vocabulary"), [(0, 257), (1, 50257), (63, 257), (5, 1)])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_logprobs_from_logits_are_as_exact_as_plain_torch(backend, device, dtype, num_tokens, vocabulary, softcap):
    generator = torch.Generator().manual_seed(vocabulary)
    logits = (3 * torch.randn(num_tokens, vocabulary, generator=generator)).to(dtype)
    target_ids = torch.randint(vocabulary, (num_tokens,), generator=generator)
    temperature = torch.linspace(0.5, 2, num_tokens)
    options = {"temperature": temperature.to(device), "softcap": softcap}
    ours = statistics(
        logprobs_from_logits, logits.to(device).clone().requires_grad_(), target_ids.to(device), entropy=True, **options
    )
    options["temperature"] = temperature
    torchs = statistics(reference.logprobs_from_logits, logits.clone().requires_grad_(), target_ids, **options)
    oracle = statistics(reference.logprobs_from_logits, logits.double().clone().requires_grad_(), target_ids, **options)
    assert ours[0].dtype == torch.float32 and ours[2].dtype == dtype
    assert_as_exact_as_torch(ours, torchs, oracle, largest_terms=float(num_tokens))


def test_a_gradient_may_take_the_place_of_its_logits(backend, device):
    leaf = torch.randn(20, 257, device=device, requires_grad=True)
    target_ids = torch.randint(257, (20,), device=device)
    logprobs_from_logits(leaf, target_ids)[0].sum().backward()
    expected, leaf.grad = leaf.grad, None
    logits = leaf * 1.0
    logprobs_from_logits(logits, target_ids, overwrite_logits=True)[0].sum().backward()
    assert torch.equal(logits.detach(), expected) and torch.equal(leaf.grad, expected)


def test_forbidden_tokens_have_no_probability_and_no_gradient(backend, device):
    logits = torch.randn(6, 257, device=device)
    logits[:, 100:] = -torch.inf
    logits.requires_grad_()
    logprobs, entropy = logprobs_from_logits(logits, torch.arange(6, device=device), entropy=True)
    (logprobs.sum() + entropy.sum()).backward()
    assert torch.isfinite(logprobs).all() and torch.isfinite(entropy).all()
    assert (logits.grad[:, 100:] == 0).all() and torch.isfinite(logits.grad).all()


def test_offsets_beyond_32_bits(backend, device):
    """The rows lie 2^30 elements apart, in memory of which nothing else is touched."""
    if device.type == "cuda" and torch.cuda.mem_get_info()[0] < 10 * 2**30:
        pytest.skip("needs 10 GiB")
    memory = torch.empty(2**31 + 300, device=device)
    logits = memory.as_strided((3, 257), (2**30, 1))
    rows = torch.randn(3, 257)
    logits.copy_(rows)
    target_ids = torch.tensor([0, 5, 256])
    got, entropy = logprobs_from_logits(logits.detach().requires_grad_(), target_ids.to(device), entropy=True)
    expected, expected_entropy = reference.logprobs_from_logits(rows.double(), target_ids)
    torch.testing.assert_close(got.detach().double().cpu(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropy.detach().double().cpu(), expected_entropy, rtol=1e-5, atol=1e-5)
    logprobs_from_logits(logits.requires_grad_(), target_ids.to(device), overwrite_logits=True)[0].sum().backward()
    p = rows.double().softmax(-1)
    gradient = torch.nn.functional.one_hot(target_ids, 257) - p
    torch.testing.assert_close(logits.detach().double().cpu(), gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_logprobs_are_as_exact_as_plain_torch(backend, device, dtype):
    case = make_case(45, 24, 257, dtype=dtype)

    def run(function, case, **options):
        logprobs, entropy = function(
            case.hidden, case.weight, case.target_ids, bias=case.bias, temperature=0.6, **options
        )
        coefficients = torch.linspace(-1, 1, 45, dtype=logprobs.dtype, device=logprobs.device)
        ((logprobs * coefficients).sum() + 0.3 * (entropy * coefficients.flip(0)).sum()).backward()
        return [logprobs.detach(), entropy.detach(), *(leaf.grad for leaf in case.leaves)]

    ours = run(linear_logprobs, case.to(dtype, device), entropy=True, chunk_tokens=16)
    torchs = run(reference.linear_logprobs, case.to(dtype))
    oracle = run(reference.linear_logprobs, case.to(torch.float64))
    assert_as_exact_as_torch(ours, torchs, oracle, largest_terms=1.0)
