import pytest
import torch
from fastgrpo_kernels import linear_logprobs, reference


def inputs(num_tokens: int, width: int, vocabulary: int, dtype: torch.dtype, scale: float = 1.0):
    generator = torch.Generator().manual_seed(num_tokens + vocabulary)
    hidden = torch.randn(num_tokens, width, generator=generator, dtype=torch.float64) * scale
    weight = torch.randn(vocabulary, width, generator=generator, dtype=torch.float64)
    bias = torch.randn(vocabulary, generator=generator, dtype=torch.float64)
    target_ids = torch.randint(vocabulary, (num_tokens,), generator=generator)
    return [t.to(dtype).requires_grad_() for t in (hidden, weight, bias)], target_ids


def run(function, tensors, target_ids, **options):
    """Values and gradients of a loss that uses both outputs."""
    for t in tensors:
        t.grad = None
    logprobs, entropy = function(
        tensors[0],
        tensors[1],
        target_ids,
        bias=tensors[2],
        **({} if function is reference.linear_logprobs else {"entropy": True}),
        **options,
    )
    coefficients = torch.linspace(-1, 1, len(target_ids), dtype=logprobs.dtype)
    ((logprobs * coefficients).sum() + 0.3 * (entropy * coefficients.flip(0)).sum()).backward()
    return [logprobs.detach(), entropy.detach(), *(t.grad for t in tensors)]


def error(got, truth):
    return max(float((g.double() - t).abs().max()) if t.numel() else 0.0 for g, t in zip(got, truth, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_tokens", "vocabulary"), [(0, 17), (1, 257), (63, 257), (1000, 509)])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_error_is_at_most_twice_that_of_plain_torch(dtype, num_tokens, vocabulary, temperature):
    tensors, ids = inputs(num_tokens, 40, vocabulary, dtype)
    doubles = [t.detach().double().requires_grad_() for t in tensors]
    truth = run(reference.linear_logprobs, doubles, ids, temperature=temperature)
    plain = run(reference.linear_logprobs, tensors, ids, temperature=temperature)
    ours = run(linear_logprobs, tensors, ids, temperature=temperature, chunk_tokens=64)
    for got, torch_got, right in zip(ours, plain, truth, strict=True):
        largest = float(right.abs().max()) if right.numel() else 0.0
        floor = 4 * torch.finfo(got.dtype).eps * max(1.0, largest)  # the last bits of the largest value
        assert error([got], [right]) <= 2 * error([torch_got], [right]) + floor


def test_float64_gradients_are_those_of_finite_differences():
    tensors, ids = inputs(5, 4, 7, torch.float64)
    assert torch.autograd.gradcheck(
        lambda h, w, b: linear_logprobs(h, w, ids, bias=b, temperature=0.7, entropy=True, chunk_tokens=2), tensors
    )


def test_chunks_do_not_change_values():
    tensors, ids = inputs(100, 8, 31, torch.float64)
    whole = run(linear_logprobs, tensors, ids, chunk_tokens=1000)
    for chunk in (1, 7, 64):
        assert error(run(linear_logprobs, tensors, ids, chunk_tokens=chunk), whole) < 1e-12


def test_logits_of_ten_thousand_stay_finite():
    tensors, ids = inputs(9, 16, 33, torch.float32, scale=3e3)
    for t in run(linear_logprobs, tensors, ids):
        assert torch.isfinite(t).all()


def test_a_frozen_head_gets_no_gradient_and_changes_no_other():
    tensors, ids = inputs(20, 8, 31, torch.float64)
    full = run(linear_logprobs, tensors, ids)
    frozen = [tensors[0], tensors[1].detach(), tensors[2].detach()]
    logprobs, entropy = linear_logprobs(frozen[0], frozen[1], ids, bias=frozen[2], entropy=True)
    coefficients = torch.linspace(-1, 1, 20, dtype=torch.float64)
    frozen[0].grad = None
    ((logprobs * coefficients).sum() + 0.3 * (entropy * coefficients.flip(0)).sum()).backward()
    assert error([frozen[0].grad], [full[2]]) < 1e-12
    assert frozen[1].grad is None


def test_wrong_shapes_and_temperatures_are_refused():
    (hidden, weight, _), ids = inputs(4, 8, 5, torch.float32)
    with pytest.raises(ValueError, match=r"temperature must be above 0, got 0"):
        linear_logprobs(hidden, weight, ids, temperature=0)
    with pytest.raises(ValueError, match=r"need hidden \[T, D\]"):
        linear_logprobs(hidden, weight, ids[:3])


def test_a_row_without_a_gradient_spoils_nothing_whatever_it_holds(backend, device):
    tensors, ids = inputs(20, 8, 31, torch.float32)
    tensors, ids = [t.detach().to(device).requires_grad_() for t in tensors], ids.to(device)
    with torch.no_grad():
        tensors[0][3] = torch.nan
    upstream = torch.where(torch.arange(20, device=device) == 3, 0.0, 1.0)
    logprobs, _ = linear_logprobs(tensors[0], tensors[1], ids, bias=tensors[2], chunk_tokens=8)
    logprobs.backward(upstream)
    assert all(t.grad.isfinite().all() for t in tensors) and (tensors[0].grad[3] == 0).all()
