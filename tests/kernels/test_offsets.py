"""Exponentials relative to the target's logit: as exact as plain torch however far that is from the log-sum-exp."""

from dataclasses import replace

import pytest
import torch
from fastgrpo_kernels import linear_grpo, linear_logprobs, reference
from fastgrpo_kernels.head.exponentials import WINDOW, ExponentialHead

from tests.kernels.cases import OBJECTIVES, assert_as_exact_as_torch, distance, make_case, value_and_gradients

ROWS, VOCABULARY = 12, 257


def case_with(drifts: list[float], dtype: torch.dtype = torch.float32):
    """A case whose targets' logprobs are about minus the drifts: the weight of a row's target is moved along hidden."""
    case = make_case(ROWS, 32, VOCABULARY, dtype=dtype, bias=False)
    hidden, weight = case.hidden.double(), case.weight.detach().double().clone()
    ids = torch.arange(ROWS)  # each its own
    lse = (hidden @ weight.T).logsumexp(1)
    # The least change of the targets' rows that gives each the wanted logit; it hardly moves the log-sum-exp.
    wanted = lse - torch.tensor(drifts, dtype=torch.float64)
    missing = wanted - (hidden * weight[ids]).sum(1)
    weight[ids] += missing[:, None] * hidden / hidden.square().sum(1, keepdim=True)
    weight = weight.to(dtype).double()
    logprobs, _ = reference.linear_logprobs(hidden, weight, ids)
    mask = torch.ones(ROWS, dtype=torch.bool)
    return replace(case, weight=weight, target_ids=ids, old_logprobs=logprobs.float().double(), response_mask=mask)


def check(drifts: list[float], dtype: torch.dtype, device: torch.device) -> None:
    case = case_with(drifts, dtype)
    ours = value_and_gradients(case.to(dtype, device), lambda c: c.ours(OBJECTIVES["plain"], chunk_tokens=8).loss)
    torchs = value_and_gradients(case.to(dtype), lambda c: c.definition(OBJECTIVES["plain"]))
    oracle = value_and_gradients(case.to(torch.float64), lambda c: c.definition(OBJECTIVES["plain"]))
    # A floor of the last bit of the largest logit, which no order of its sum can do without.
    assert_as_exact_as_torch(ours, torchs, oracle, largest_terms=max(1.0, max(drifts) / 8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("drift", [0.0, 5.0, 30.0, WINDOW - 1, WINDOW + 1, 100.0])
def test_a_drift_of_all_rows_costs_no_digits(backend, device, drift, dtype):
    check([drift] * ROWS, dtype, device)


@pytest.mark.parametrize("backend", ["plain", "native"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("drifts", [(0, 5), (0, 30), (25, 31), (40, 150), (0, 150)])
def test_random_drifts_cost_no_digits(backend, drifts, dtype):
    """The root mean square of 20 errors is at most 1.25 times plain torch's; one alone is a matter of luck."""
    generator = torch.Generator().manual_seed(0)
    squares = torch.zeros(3, 2, dtype=torch.float64)
    for _ in range(20):
        low, high = drifts
        case = case_with((low + (high - low) * torch.rand(ROWS, generator=generator)).tolist(), dtype)
        ours = value_and_gradients(case.to(dtype), lambda c: c.ours(OBJECTIVES["plain"], chunk_tokens=8).loss)
        torchs = value_and_gradients(case.to(dtype), lambda c: c.definition(OBJECTIVES["plain"]))
        oracle = value_and_gradients(case.to(torch.float64), lambda c: c.definition(OBJECTIVES["plain"]))
        for square, got, plain, exact in zip(squares, ours, torchs, oracle, strict=True):
            square += torch.tensor([distance(got, exact), distance(plain, exact)]).square()
    assert (squares[:, 0] <= 1.25**2 * squares[:, 1]).all(), squares.sqrt()


def test_only_a_chunk_with_a_row_beyond_the_window_is_computed_again(monkeypatch):
    again, compute = [], ExponentialHead._compute_again

    def watched(head, rows, offsets, beyond, entropy):
        again.append((rows, beyond.tolist()))
        return compute(head, rows, offsets, beyond, entropy)

    monkeypatch.setattr(ExponentialHead, "_compute_again", watched)
    case = case_with([1.0] * 6 + [50.0] + [2.0] * 5).to(torch.float32)
    case.ours(OBJECTIVES["plain"], chunk_tokens=4).loss.backward()
    assert again == [(slice(4, 8), [2])]


def test_in_an_update_the_logprobs_are_those_of_a_pass_without_gradients(backend, device):
    """To the bit, so that the ratio to logprobs that were computed before the update is 1."""
    case = case_with([0.5, 3.0, 40.0] * 4).to(torch.float32, device)
    with torch.no_grad():
        before, _ = linear_logprobs(case.hidden, case.weight, case.target_ids, chunk_tokens=4)
    for entropy in (False, True):
        output = linear_grpo(
            case.hidden, case.weight, case.target_ids, before, case.advantages, None, ROWS, entropy=entropy,
            chunk_tokens=4,
        )  # fmt: skip
        assert torch.equal(output.logprobs, before) and (output.ratio == 1).all()
