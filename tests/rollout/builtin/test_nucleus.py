"""Top-p sampling, which evaluations use and training never does."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgrpo.rollout.builtin.engine import BuiltinEngine
from fastgrpo.rollout.builtin.kv_cache import ATTENTION
from fastgrpo.rollout.builtin.sampling import nucleus, sample
from fastgrpo.rollout.generate import generate
from fastgrpo.rollout.sampling_noise import uniform
from fastgrpo.types import Sampling
from tests.tiny import prompts, tiny_model


def by_definition(weights: list[int], share: Fraction) -> set[int]:
    """The fewest most probable tokens with this share, of equals the first: found by trying every size."""
    order = sorted(range(len(weights)), key=lambda i: (-weights[i], i))
    total = sum(weights)
    size = next(k for k in range(1, len(weights) + 1) if Fraction(sum(weights[i] for i in order[:k]), total) >= share)
    return set(order[:size])


@settings(deadline=None, max_examples=300)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 64))
def test_the_nucleus_is_the_fewest_most_probable_tokens_with_the_share(weights, sixty_fourths):
    weights = [*weights, 2 ** int(np.ceil(np.log2(sum(weights) + 1))) - sum(weights)]  # a power of 2: exact in binary
    probs = torch.tensor([weights], dtype=torch.float64) / sum(weights)
    kept = nucleus(probs, sixty_fourths / 64)
    expected = by_definition(weights, Fraction(sixty_fourths, 64))
    assert set(kept[0].nonzero().flatten().tolist()) == expected
    assert all(kept[0, i] == probs[0, i] for i in expected)


def test_without_a_cut_a_draw_is_bit_for_bit_that_of_the_whole_distribution():
    logits = torch.randn(64, 500, generator=torch.Generator().manual_seed(0)) * 3
    keys, places = torch.arange(64) * 977, torch.arange(64)
    logprobs = torch.log_softmax(logits / 0.7, -1)
    cumulative = logprobs.exp().double().cumsum(-1)
    draw = uniform(keys, places)[:, None] * cumulative[:, -1:]
    expected = torch.searchsorted(cumulative, draw, right=True).squeeze(1)
    ids, drawn_logprobs, entropy = sample(logits, 0.7, keys, places)
    assert torch.equal(ids, expected)
    assert torch.equal(drawn_logprobs, logprobs.gather(1, expected[:, None]).squeeze(1))
    for given_1, left_out in zip(sample(logits, 0.7, keys, places, 1.0), (ids, drawn_logprobs, entropy), strict=True):
        assert torch.equal(given_1, left_out)


def test_a_cut_changes_what_is_drawn_and_neither_logprob_nor_entropy():
    logits = torch.randn(2000, 50, generator=torch.Generator().manual_seed(0)) * 2
    keys, places = torch.arange(2000), torch.zeros(2000, dtype=torch.int64)
    ids, logprobs, entropy = sample(logits, 1.0, keys, places, 0.6)
    whole = torch.log_softmax(logits, -1)
    assert torch.equal(logprobs, whole.gather(1, ids[:, None]).squeeze(1))
    assert torch.equal(entropy, sample(logits, 1.0, keys, places)[2])
    assert not torch.equal(ids, sample(logits, 1.0, keys, places)[0])


def test_the_engine_draws_from_the_nucleus_in_proportion():
    """First tokens of 20,000 samples of one prompt against the probabilities of the nucleus."""
    prompt = prompts(1)[0]
    sampling = Sampling(group_size=20_000, max_response_tokens=1, temperature=1.3, top_p=0.7, seed=3)
    group = generate(BuiltinEngine(tiny_model("qwen2", ATTENTION), 20_000), [prompt], sampling)[0]
    counts = np.bincount([s.response.response_ids[0] for s in group], minlength=61)
    tokens = torch.from_numpy(prompt.prompt_ids.astype(np.int64))[None]
    with torch.no_grad():
        whole = torch.softmax(tiny_model()(tokens).logits[0, -1].double() / 1.3, -1).numpy()
    order = np.argsort(-whole)
    size = int(np.searchsorted(np.cumsum(whole[order]), 0.7)) + 1
    inside = order[:size]
    assert 1 < size < 61 and counts[order[size:]].sum() == 0
    expected = whole[inside] / whole[inside].sum() * 20_000
    chi_square = float(((counts[inside] - expected) ** 2 / expected).sum())
    assert chi_square < size + 5 * np.sqrt(2 * size)
    logprobs = np.array([s.response.rollout_logprobs[0] for s in group])
    np.testing.assert_allclose(logprobs, np.log(whole)[[s.response.response_ids[0] for s in group]], atol=1e-4)


@pytest.mark.parametrize("top_p", [1e-9, 0.5])
def test_the_smallest_nucleus_is_the_most_probable_token(top_p):
    sampling = Sampling(group_size=2, max_response_tokens=12, temperature=0.8, top_p=1e-9, stop_token_ids=(0,))
    engine = BuiltinEngine(tiny_model("qwen2", ATTENTION), 64)

    def ids(sampling):
        return [s.response.response_ids.tolist() for g in generate(engine, prompts(5), sampling) for s in g]

    greedy = ids(replace(sampling, temperature=0.0, top_p=1.0))
    assert (ids(replace(sampling, top_p=top_p)) == greedy) == (top_p < 0.01)
