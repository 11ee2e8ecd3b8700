"""The objective against its formulas, token by token in plain Python floats (float64)."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from fastgrpo_kernels import METRICS, Objective, grpo_loss
from transformers import Qwen2Config, Qwen2ForCausalLM

from fastgrpo.algorithm.advantages import group_normalised
from fastgrpo.policy.packing import pack
from fastgrpo.policy.policy import Policy
from fastgrpo.types import Prompt, Response, Sample
from tests.tiny import groups_of

LOW, HIGH, DUAL = 0.2, 0.28, 10.0
OBJECTIVE = Objective(clip_low=LOW, clip_high=HIGH, dual_clip=DUAL)
RATIOS = [1e-6, 0.01, 0.5, 0.79, 0.81, 0.999, 1.0, 1.001, 1.27, 1.29, 3.0, 9.9, 10.1, 50.0, 1e4, 1e8]
ADVANTAGES = [-2.5, -1.0, -1e-3, 0.0, 1e-3, 1.0, 2.5]


def token_loss(log_ratio: float, advantage: float) -> float:
    """-J of one token: DAPO eq. 8 inside the sum, with dual clip (Ye 2020, eq. 5) for a negative advantage."""
    ratio = math.exp(log_ratio)
    clipped = min(max(ratio, 1 - LOW), 1 + HIGH)
    objective = min(ratio * advantage, clipped * advantage)
    if advantage < 0:
        objective = max(objective, DUAL * advantage)
    return -objective


def token_gradient(log_ratio: float, advantage: float) -> float:
    """By the logprob: d ratio / d logprob = ratio, unless a bound holds the objective."""
    ratio = math.exp(log_ratio)
    held = ratio > 1 + HIGH if advantage > 0 else (ratio < 1 - LOW or ratio > DUAL)
    return 0.0 if held else -ratio * advantage


def every_pair() -> tuple[torch.Tensor, torch.Tensor]:  # log_ratio, advantages
    pairs = [(math.log(r), a) for r in RATIOS for a in ADVANTAGES]
    return tuple(torch.tensor(column, dtype=torch.float64) for column in zip(*pairs, strict=True))


def test_values_and_gradients_follow_the_definition():
    log_ratio, advantages = every_pair()
    old = -torch.rand(len(log_ratio), dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 5
    logprobs = (old + log_ratio).requires_grad_()
    num_loss_tokens = 3 * len(old)  # these are a third of the update
    loss, *_ = grpo_loss(logprobs, old, advantages, None, num_loss_tokens, OBJECTIVE)
    loss.backward()
    pairs = list(zip((logprobs - old).tolist(), advantages.tolist(), strict=True))
    assert loss.item() == pytest.approx(math.fsum(token_loss(*p) for p in pairs) / num_loss_tokens, rel=1e-12)
    expected = torch.tensor([token_gradient(*p) for p in pairs], dtype=torch.float64) / num_loss_tokens
    torch.testing.assert_close(logprobs.grad, expected, rtol=1e-12, atol=1e-15)


def test_the_clipped_are_exactly_the_tokens_without_a_gradient():
    log_ratio, advantages = every_pair()
    logprobs = log_ratio.clone().requires_grad_()
    loss, _, metrics = grpo_loss(logprobs, torch.zeros_like(log_ratio), advantages, None, len(log_ratio), OBJECTIVE)
    loss.backward()
    clipped = dict(zip(METRICS, metrics.tolist(), strict=True))
    held = (logprobs.grad == 0) & (advantages != 0)
    assert clipped["clipped_high"] == (held & (advantages > 0)).sum() > 0
    assert clipped["dual_clipped"] == (held & (advantages < 0) & (log_ratio > 0)).sum() > 0
    assert clipped["clipped_low"] == (held & (advantages < 0) & (log_ratio < 0)).sum() > 0


def test_gradient_is_that_of_the_value():
    # Finite differences are off at a kink: no ratio stands on a bound.
    log_ratio, advantages = every_pair()
    near = log_ratio.abs() < 5
    old = torch.zeros(int(near.sum()), dtype=torch.float64)

    def loss_of(logprobs: torch.Tensor) -> torch.Tensor:
        return grpo_loss(logprobs, old, advantages[near], None, 10, OBJECTIVE).loss

    assert torch.autograd.gradcheck(loss_of, log_ratio[near].clone().requires_grad_(), eps=1e-7, atol=1e-6)


def test_float32_is_as_exact_as_its_input():
    log_ratio, advantages = every_pair()
    single = log_ratio.float().requires_grad_()
    loss, *_ = grpo_loss(single, torch.zeros_like(single), advantages.float(), None, len(single), OBJECTIVE)
    loss.backward()
    pairs = list(zip(single.double().tolist(), advantages.float().double().tolist(), strict=True))
    expected = torch.tensor([token_gradient(*p) for p in pairs], dtype=torch.float64) / len(pairs)
    torch.testing.assert_close(single.grad.double(), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("log_ratio", [-1e4, -100.0, 100.0, 1e4])
@pytest.mark.parametrize("advantage", [-1.0, 0.0, 1.0])
def test_a_token_that_is_far_off_leaves_loss_and_gradient_finite(log_ratio: float, advantage: float):
    logprobs = torch.tensor([log_ratio, 0.1], requires_grad=True)
    loss, *_ = grpo_loss(logprobs, torch.zeros(2), torch.tensor([advantage, 1.0]), None, 2, OBJECTIVE)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logprobs.grad).all()
    assert logprobs.grad[0] == 0


def test_advantages_follow_the_definition_and_equal_groups_give_zero():
    rng = np.random.default_rng(0)
    rewards = np.concatenate(
        [rng.choice([-1.0, 1.0], size=8 * 30), np.full(8, -1.0), np.full(8, 0.1), rng.normal(size=8)]
    )
    for start, group in ((i, rewards[i : i + 8].tolist()) for i in range(0, len(rewards), 8)):
        mean = math.fsum(group) / 8
        std = math.sqrt(math.fsum((r - mean) ** 2 for r in group) / 7)
        expected = [0.0 if len(set(group)) == 1 else (r - mean) / (std + 1e-6) for r in group]
        got = group_normalised(rewards, groups_of(8))[start : start + 8]
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=0 if len(set(group)) == 1 else 1e-7)


@pytest.mark.parametrize("sampled", ["all", "some"])
def test_weight_gradient_of_packed_micro_batches_is_that_of_the_definition(sampled):
    """Float64 from the model up: one sequence at a time, all logits, torch's own attention.

    Not transformers' eager one, which rounds its softmax to float32; its norms do too, on both sides alike.
    """
    sequences, old = ragged_sequences(sampled == "some")
    num_loss_tokens = sum(s.response.num_sampled_tokens for s in sequences)
    assert (num_loss_tokens == sum(len(s.response) for s in sequences)) == (sampled == "all")
    policy = Policy(tiny_model("fastgrpo_padded"), temperature=0.7, head_chunk_tokens=5)
    for chosen in (slice(0, 2), slice(2, 3), slice(3, 6)):
        batch = replace(pack(sequences[chosen]), old_logprobs=torch.cat(old[chosen]))
        logprobs, _ = policy(batch)
        advantages = batch.advantages[batch.response_mask].double()
        grpo_loss(logprobs, batch.old_logprobs, advantages, None, num_loss_tokens, OBJECTIVE).loss.backward()

    model = tiny_model("sdpa")
    logprobs = [naive_logprobs(model, s, temperature=0.7) for s in sequences]
    weights = [
        [token_gradient(float(d), float(np.float32(s.advantage))) for d in new.detach() - before]
        for s, new, before in zip(sequences, logprobs, old, strict=True)
    ]
    torch.autograd.backward(
        torch.cat(logprobs), torch.tensor(np.concatenate(weights), dtype=torch.float64) / num_loss_tokens
    )  # fmt: skip
    assert 0.2 < np.mean(np.concatenate(weights) == 0) < 0.8  # both kinds of tokens are there
    for (name, ours), naive in zip(policy.model.named_parameters(), model.parameters(), strict=True):
        error = float((ours.grad - naive.grad).abs().max() / naive.grad.abs().max())
        assert error < 1e-6, f"{name}: {error:.1e} of the largest gradient"


def ragged_sequences(masked: bool) -> tuple[list[Sample], list[torch.Tensor]]:
    """Six responses of 1 to 9 tokens, and old logprobs that put their ratios on both sides of every bound. In a masked
    one two tokens of three were sampled, and in the shortest none."""
    rng = np.random.default_rng(3)
    sequences = []
    for prompt, length, advantage in ((3, 7, 1.2), (1, 1, -0.8), (5, 9, -1.5), (2, 4, 0.6), (4, 6, 0.0), (2, 8, -0.3)):
        ids = rng.integers(0, 40, size=prompt + length).astype(np.int32)
        mask = np.arange(length) % 3 != 0 if masked else None
        response = Response(ids[prompt:], np.zeros(length, dtype=np.float32), "stop", 0, response_mask=mask)
        sequences.append(Sample(Prompt.of_ids(ids[:prompt]), response, advantage=advantage))
    model = tiny_model("sdpa")
    with torch.no_grad():
        current = [naive_logprobs(model, s, temperature=0.7) for s in sequences]
    return sequences, [c - torch.from_numpy(rng.uniform(-3, 3, size=len(c))) for c in current]


def naive_logprobs(model: Qwen2ForCausalLM, sequence: Sample, temperature: float) -> torch.Tensor:
    """Of the sampled tokens, from all logits."""
    ids = torch.from_numpy(
        np.concatenate([sequence.prompt.prompt_ids, sequence.response.response_ids]).astype(np.int64)
    )
    logprobs = torch.log_softmax(model(ids[None]).logits[0] / temperature, dim=-1)
    first, mask = len(sequence.prompt.prompt_ids), sequence.response.response_mask
    sampled = [t for t in range(first, len(ids)) if mask is None or mask[t - first]]
    return torch.stack([logprobs[t - 1, ids[t]] for t in sampled]) if sampled else logprobs.new_zeros(0)


def tiny_model(attention: str) -> Qwen2ForCausalLM:
    shape = Qwen2Config(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = Qwen2ForCausalLM._from_config(shape, attn_implementation=attention).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model
