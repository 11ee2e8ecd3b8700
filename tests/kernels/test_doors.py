"""What the ops refuse because torch would take it for 0, what they compute without values, and what bounds them."""

import math
from contextlib import nullcontext

import pytest
import torch
from fastgrpo_kernels import (
    Objective,
    group_advantages,
    grpo_loss,
    linear_grpo,
    linear_logits,
    linear_logprobs,
    logprobs_from_logits,
    reference,
)
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad

NUM_TOKENS, WIDTH, VOCABULARY = 6, 4, 9
TINY = torch.finfo(torch.float32).tiny


def inputs():
    """The tensors of a small call, by name."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    return {
        "hidden": normal(NUM_TOKENS, WIDTH),
        "weight": normal(VOCABULARY, WIDTH),
        "bias": normal(VOCABULARY),
        "logits": normal(NUM_TOKENS, VOCABULARY),
        "logprobs": -torch.rand(NUM_TOKENS, generator=generator),
        "entropy": torch.rand(NUM_TOKENS, generator=generator),
        "ids": torch.randint(VOCABULARY, (NUM_TOKENS,), generator=generator),
        "old": -torch.rand(NUM_TOKENS, generator=generator),
        "advantages": normal(NUM_TOKENS),
        "mask": torch.arange(NUM_TOKENS) > 0,
        "rewards": normal(NUM_TOKENS),
        "temperatures": torch.rand(NUM_TOKENS, generator=generator) + 0.5,
    }


def of_linear_logprobs(t):
    logprobs, entropy = linear_logprobs(
        t["hidden"], t["weight"], t["ids"], bias=t["bias"], temperature=t["temperatures"], entropy=True
    )
    return logprobs.sum() + entropy.sum()


def of_linear_grpo(t):
    return linear_grpo(
        t["hidden"], t["weight"], t["ids"], t["old"], t["advantages"], t["mask"], 5, bias=t["bias"],
        temperature=t["temperatures"],
    ).loss  # fmt: skip


def of_logits(t):
    logprobs, entropy = logprobs_from_logits(t["logits"], t["ids"], temperature=t["temperatures"], entropy=True)
    return logprobs.sum() + entropy.sum()


def of_grpo_loss(t):
    objective = Objective(entropy_coef=0.1)
    return grpo_loss(t["logprobs"], t["old"], t["advantages"], t["mask"], 5, objective, entropy=t["entropy"]).loss


def of_group_advantages(t):
    return group_advantages(t["rewards"], 3).sum()


def of_linear_logits(t):
    return linear_logits(t["hidden"], t["weight"], t["bias"]).sum()


OPS = {  # with the inputs that get a gradient, and those that are constants
    "linear_logprobs": (of_linear_logprobs, ("hidden", "weight", "bias"), ("temperatures",)),
    "linear_grpo": (of_linear_grpo, ("hidden", "weight", "bias"), ("old", "advantages", "temperatures")),
    "logprobs_from_logits": (of_logits, ("logits",), ("temperatures",)),
    "grpo_loss": (of_grpo_loss, ("logprobs", "entropy"), ("old", "advantages")),
    "group_advantages": (of_group_advantages, (), ("rewards",)),
    "linear_logits": (of_linear_logits, ("hidden", "weight", "bias"), ()),
}
EACH_INPUT = [(name, leaf) for name, (_, leaves, constants) in OPS.items() for leaf in leaves + constants]
DIFFERENTIABLE = [(name, leaf) for name, (_, leaves, _) in OPS.items() for leaf in leaves if name != "linear_logits"]
CONSTANTS = [(name, constant) for name, (*_, constants) in OPS.items() for constant in constants]


@pytest.mark.parametrize(("name", "leaf"), EACH_INPUT)
def test_a_tangent_is_refused_by_its_name(name, leaf):
    op, tensors = OPS[name][0], inputs()
    with pytest.raises(NotImplementedError, match=rf"{name} gives derivatives by backward\(\) alone.* forward mode"):
        torch.func.jvp(lambda x: op({**tensors, leaf: x}), (tensors[leaf],), (torch.ones_like(tensors[leaf]),))
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward mode"):
        op({**tensors, leaf: forward_ad.make_dual(tensors[leaf], torch.ones_like(tensors[leaf]))})


@pytest.mark.parametrize(("name", "leaf"), EACH_INPUT)
def test_transforms_of_torch_func_are_refused_by_their_names(name, leaf):
    op, tensors = OPS[name][0], inputs()
    for transform in (torch.func.grad, torch.func.jacrev, torch.func.hessian):
        with pytest.raises(NotImplementedError, match=r"differentiated in forward mode or by torch\.func"):
            transform(lambda x: op({**tensors, leaf: x}))(tensors[leaf])
    with pytest.raises(NotImplementedError, match=f"{name} has no rule for vmap, and .* is mapped"):
        torch.func.vmap(lambda x: op({**tensors, leaf: x}))(torch.stack([tensors[leaf]] * 2))


@pytest.mark.parametrize("name", [name for name in OPS if OPS[name][1]])
def test_compiled_forward_mode_is_refused_too(name):
    op, (leaf, *_), _ = OPS[name]
    tensors = inputs()

    @torch.compile(backend="eager")
    def tangent(x):
        return torch.func.jvp(lambda x: op({**tensors, leaf: x}), (x,), (torch.ones_like(x),))

    torch._dynamo.reset()
    with pytest.raises(NotImplementedError, match="forward mode"):
        tangent(tensors[leaf])


@pytest.mark.parametrize(("name", "leaf"), DIFFERENTIABLE)
def test_a_second_derivative_is_refused(name, leaf):
    op, tensors = OPS[name][0], inputs()
    x = tensors[leaf].requires_grad_()
    with pytest.raises(NotImplementedError, match=f"{name} gives first derivatives alone.*leave out create_graph=True"):
        torch.autograd.grad(op(tensors), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="first derivatives alone"):
        torch.autograd.functional.hessian(lambda x: op({**tensors, leaf: x}), x.detach())
    (gradient,) = torch.autograd.grad(op(tensors), x)
    assert gradient.abs().sum() > 0


def test_the_reference_gives_what_the_ops_refuse():
    t = inputs()

    def of_hidden(hidden):
        return reference.linear_logprobs(hidden, t["weight"], t["ids"])[0].sum()

    _, tangent = torch.func.jvp(of_hidden, (t["hidden"],), (torch.ones_like(t["hidden"]),))
    gradient = torch.func.grad(of_hidden)(t["hidden"])
    torch.testing.assert_close(tangent, gradient.sum())
    assert torch.autograd.functional.hessian(of_hidden, t["hidden"]).abs().sum() > 0


@pytest.mark.parametrize(("name", "constant"), CONSTANTS)
def test_a_constant_that_asks_for_a_gradient_is_refused(name, constant):
    op, tensors = OPS[name][0], inputs()
    tensors[constant].requires_grad_()
    argument = {"old": "old_logprobs", "temperatures": "temperature"}.get(constant, constant)
    with pytest.raises(ValueError, match=rf"no gradient to {argument}, .*pass {argument}\.detach\(\)"):
        op(tensors)
    with torch.no_grad():
        op(tensors)


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("kind", ["meta", "fake"])
def test_shapes_are_computed_without_values(name, kind):
    op, leaves, _ = OPS[name]
    values = inputs()
    expected = op(values)
    mode = FakeTensorMode()
    made = mode.from_tensor if kind == "fake" else lambda tensor: tensor.to("meta")
    tensors = {key: made(value) for key, value in values.items()}
    wanted = [tensors[leaf].requires_grad_() for leaf in leaves if name != "linear_logits"]
    with mode if kind == "fake" else nullcontext():
        found = op(tensors)
        gradients = torch.autograd.grad(found, wanted) if wanted else ()
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    for leaf, gradient in zip(wanted, gradients, strict=True):
        assert (gradient.shape, gradient.dtype, gradient.device) == (leaf.shape, leaf.dtype, leaf.device)


def test_logits_without_values_have_the_dtype_of_the_sums():
    hidden, weight = (torch.empty(n, WIDTH, dtype=torch.bfloat16, device="meta") for n in (NUM_TOKENS, VOCABULARY))
    found = linear_logits(hidden, weight)
    assert found.is_meta and found.shape == (NUM_TOKENS, VOCABULARY) and found.dtype == torch.float32


@pytest.mark.parametrize("name", ["linear_logprobs", "linear_grpo", "logprobs_from_logits"])
@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, TINY / 2, 1e-40, 1e38, math.inf])
def test_a_temperature_without_an_inverse_is_refused(name, temperature):
    op, tensors = OPS[name][0], inputs()
    with pytest.raises(ValueError, match="temperature must be above 0"):
        op({**tensors, "temperatures": temperature})
    tensors["temperatures"][2] = temperature
    with pytest.raises(ValueError, match="every token's temperature must be above 0"):
        op(tensors)


@pytest.mark.parametrize("backend", ["plain", "native", "gpu"], indirect=True)
@pytest.mark.parametrize("temperature", [TINY, 1 / TINY])
def test_the_outermost_temperatures_give_the_reference(backend, device, temperature):
    t = {key: value.to(device) for key, value in inputs().items()}
    logits = t["logits"] * (1e-3 if temperature < 1 else 1e3)
    found, _ = logprobs_from_logits(logits, t["ids"], temperature=temperature)
    expected = torch.log_softmax(logits.double() / temperature, -1)[torch.arange(NUM_TOKENS), t["ids"]]
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_in_float64_a_temperature_may_be_as_small_as_float64_inverts():
    t = {key: value.double() if value.is_floating_point() else value for key, value in inputs().items()}
    found, _ = logprobs_from_logits(t["logits"], t["ids"], temperature=1e-300)
    assert torch.isfinite(found).all()
    with pytest.raises(ValueError, match="temperature must be above 0"):
        logprobs_from_logits(t["logits"], t["ids"], temperature=1e-310)


@pytest.mark.parametrize("name", ["linear_logprobs", "linear_grpo", "logprobs_from_logits"])
def test_a_temperature_that_cannot_be_read_makes_its_row_nan_and_no_other(name, monkeypatch):
    """As on a GPU, which is not waited for to learn of it."""
    monkeypatch.setattr("fastgrpo_kernels.checks.readable", lambda tensor: False)
    t = inputs()
    t["temperatures"][2] = 1e-40
    if name == "linear_grpo":
        found = linear_grpo(
            t["hidden"], t["weight"], t["ids"], t["old"], t["advantages"], None, 5, temperature=t["temperatures"]
        ).logprobs
    elif name == "linear_logprobs":
        found, _ = linear_logprobs(t["hidden"], t["weight"], t["ids"], temperature=t["temperatures"])
    else:
        found, _ = logprobs_from_logits(t["logits"], t["ids"], temperature=t["temperatures"])
    assert found.isnan().tolist() == [False, False, True, False, False, False]


@pytest.mark.parametrize(
    ("name", "argument", "dtype", "message"),
    [
        ("linear_logprobs", "hidden", torch.complex64, "one floating dtype"),
        ("linear_logprobs", "hidden", torch.int64, "one floating dtype"),
        ("linear_logits", "weight", torch.complex64, "one floating dtype"),
        ("linear_grpo", "advantages", torch.complex64, "advantages must be real"),
        ("linear_grpo", "temperatures", torch.complex64, "temperatures must be real"),
        ("logprobs_from_logits", "logits", torch.complex64, "logits must have 16, 32 or 64 bits"),
        ("logprobs_from_logits", "logits", torch.float8_e4m3fn, "logits must have 16, 32 or 64 bits"),
        ("grpo_loss", "logprobs", torch.complex64, "logprobs must have 16, 32 or 64 bits"),
        ("grpo_loss", "logprobs", torch.int64, "logprobs must have 16, 32 or 64 bits"),
        ("grpo_loss", "entropy", torch.complex64, "entropy must have 16, 32 or 64 bits"),
        ("grpo_loss", "old", torch.complex64, "old_logprobs must be real"),
        ("group_advantages", "rewards", torch.complex64, "rewards must be real"),
    ],
)
def test_a_dtype_that_would_lose_a_part_of_the_value_is_refused(name, argument, dtype, message):
    op, tensors = OPS[name][0], inputs()
    tensors[argument] = tensors[argument].to(dtype)
    with pytest.raises(ValueError, match=message):
        op(tensors)


def test_integer_rewards_and_advantages_are_their_floats():
    assert torch.equal(
        group_advantages(torch.tensor([0, 1, 1, 0]), 4), group_advantages(torch.tensor([0.0, 1, 1, 0]), 4)
    )
    t = inputs()
    signs = t["advantages"].sign()
    found = [of_grpo_loss({**t, "advantages": advantages}) for advantages in (signs, signs.long())]
    assert torch.equal(*found)


@pytest.mark.parametrize("count", [0, -1, math.nan, math.inf])
def test_a_count_that_is_no_positive_number_is_refused(count):
    t = inputs()
    for given in (count, torch.tensor(float(count))):
        with pytest.raises(ValueError, match="num_loss_tokens must be above 0 and finite"):
            grpo_loss(t["logprobs"], t["old"], t["advantages"], None, given)


@pytest.mark.parametrize("eps", [-1e-6, math.nan, math.inf])
def test_an_eps_that_is_no_number_of_0_or_more_is_refused(eps):
    with pytest.raises(ValueError, match="eps must be 0 or more"):
        group_advantages(torch.rand(4), 2, eps=eps)


def test_logits_and_ids_on_two_devices_are_refused():
    t = inputs()
    with pytest.raises(ValueError, match="on one device, got cpu and meta"):
        logprobs_from_logits(t["logits"], t["ids"].to("meta"))
