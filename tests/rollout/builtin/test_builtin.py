from dataclasses import replace

import numpy as np
import pytest
import torch

from fastgrpo.policy.packing import pack
from fastgrpo.policy.policy import Policy
from fastgrpo.rollout.builtin.engine import BuiltinEngine
from fastgrpo.rollout.builtin.kv_cache import ATTENTION
from fastgrpo.rollout.generate import generate, requests_of
from fastgrpo.rollout.weight_sync import checksum
from fastgrpo.types import Sampling
from tests.tiny import prompts, tiny_model

SAMPLING = Sampling(group_size=3, max_response_tokens=20, temperature=0.8, stop_token_ids=(0, 5), seed=7)


def engine(architecture: str = "qwen2", max_sequences: int = 64, dtype: torch.dtype = torch.float32) -> BuiltinEngine:
    return BuiltinEngine(tiny_model(architecture, ATTENTION, dtype), max_sequences)


def ids(groups):
    return [s.response.response_ids.tolist() for g in groups for s in g]


EVERY = ["qwen2", "llama", "mistral", "qwen3_moe", "gemma2", "gpt_oss", "deepseek_v3", "stablelm"]


@pytest.mark.parametrize("architecture", EVERY)
def test_logprobs_are_those_of_the_policy_over_the_same_tokens(architecture):
    """The trainer's packed pass and the decode loop's cache are two programs for one number."""
    groups = generate(engine(architecture), prompts(9), SAMPLING)
    policy = Policy(tiny_model(architecture, "fastgrpo_padded"), temperature=0.8, head_chunk_tokens=64)
    rows = [sample for group in groups for sample in group]
    with torch.no_grad():
        logprobs, _ = policy(pack(rows))
    sampled = torch.from_numpy(np.concatenate([r.response.rollout_logprobs for r in rows]))
    torch.testing.assert_close(sampled, logprobs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", EVERY)
def test_greedy_tokens_are_those_of_transformers_generate(architecture):
    sampling = replace(SAMPLING, temperature=0.0, group_size=1)
    ours = ids(generate(engine(architecture), prompts(5), sampling))
    model = tiny_model(architecture, "eager")
    for prompt, response in zip(prompts(5), ours, strict=True):
        tokens = torch.from_numpy(prompt.prompt_ids.astype(np.int64))[None]
        theirs = model.generate(
            tokens, max_new_tokens=20, do_sample=False, eos_token_id=[0, 5], attention_mask=torch.ones_like(tokens)
        )
        assert theirs[0, tokens.shape[1] :].tolist() == response


def test_a_response_does_not_depend_on_its_neighbours():
    """In float64, where rounding decides no draw: alone, among others, in other order, with few slots."""
    together = ids(generate(engine(dtype=torch.float64), prompts(12), SAMPLING))
    few_slots = ids(generate(engine(dtype=torch.float64, max_sequences=4), prompts(12), SAMPLING))
    one_by_one = [i for p in prompts(12) for i in ids(generate(engine(dtype=torch.float64), [p], SAMPLING))]
    backwards = generate(engine(dtype=torch.float64), prompts(12)[::-1], SAMPLING)[::-1]
    assert together == few_slots == one_by_one == ids(backwards)


def test_seed_prompt_sample_and_visit_all_change_the_draw():
    base = ids(generate(engine(), prompts(4), SAMPLING))
    assert len({tuple(r) for r in base}) > 6
    assert ids(generate(engine(), prompts(4), replace(SAMPLING, seed=8))) != base
    revisited = [replace(p, position=p.position + 100) for p in prompts(4)]
    assert ids(generate(engine(), revisited, SAMPLING)) != base


def test_a_response_ends_with_its_stop_token_or_at_its_limit():
    for group in generate(engine(), prompts(20), SAMPLING):
        for response in (sample.response for sample in group):
            *body, last = response.response_ids.tolist()
            assert not {0, 5} & set(body)
            assert response.finish_reason == ("stop" if last in (0, 5) else "length")
            assert response.finish_reason == "stop" or len(response) == SAMPLING.max_response_tokens
            assert len(response.rollout_logprobs) == len(response)


def test_samples_follow_the_policys_distribution():
    """First tokens of 20,000 samples of one prompt against the probabilities themselves."""
    prompt = prompts(1)[0]
    sampling = Sampling(group_size=20_000, max_response_tokens=1, temperature=1.3, seed=3)
    group = generate(engine(max_sequences=20_000), [prompt], sampling)[0]
    counts = np.bincount([s.response.response_ids[0] for s in group], minlength=61)
    tokens = torch.from_numpy(prompt.prompt_ids.astype(np.int64))[None]
    with torch.no_grad():
        probabilities = torch.softmax(tiny_model()(tokens).logits[0, -1] / 1.3, -1).double().numpy()
    expected = probabilities * 20_000
    seen = expected > 5
    chi_square = float(((counts - expected)[seen] ** 2 / expected[seen]).sum())
    assert chi_square < seen.sum() + 5 * np.sqrt(2 * seen.sum())


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3_moe"])
def test_new_weights_are_written_in_place_and_used(architecture):
    drawn = engine(architecture)
    before = ids(generate(drawn, prompts(4), SAMPLING))
    addresses = [p.data_ptr() for p in drawn.model.parameters()]
    other = tiny_model(architecture)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(-1.0)
    drawn.write_weights(other.named_parameters(), 1)
    assert [p.data_ptr() for p in drawn.model.parameters()] == addresses
    assert drawn.checksums() == {n: checksum(p.data) for n, p in other.named_parameters()}
    assert ids(generate(drawn, prompts(4), SAMPLING)) != before
    with pytest.raises(KeyError):
        drawn.write_weights([("no.such.weight", torch.zeros(1))], 2)


def test_a_token_takes_as_much_memory_as_its_keys_and_values():
    """DeepSeek: two layers of four heads, keys of 16 and values of 12."""
    drawn = engine("deepseek_v3")
    drawn.submit(requests_of(prompts(1), SAMPLING))
    (decoding,) = drawn._decodings.values()
    assert decoding.bytes_per_token == 2 * 4 * (16 + 12) * 4


def test_a_model_whose_attention_keeps_no_keys_is_refused():
    with pytest.raises(ValueError, match="a BloomForCausalLM computes attention by code of its own"):
        generate(engine("bloom"), prompts(1), SAMPLING)


def test_no_prompts_give_no_groups():
    assert generate(engine(), [], SAMPLING) == []


def test_the_samplers_entropy_is_that_of_the_policy():
    groups = generate(engine(), prompts(5), SAMPLING)
    rows = [sample for group in groups for sample in group]
    policy = Policy(tiny_model("qwen2", "fastgrpo_padded"), temperature=0.8, head_chunk_tokens=64)
    with torch.no_grad():
        _, entropy = policy(pack(rows))
    lengths = [len(r.response) for r in rows]
    means = [float(part.mean()) for part in entropy.split(lengths)]
    assert [r.response.mean_entropy for r in rows] == pytest.approx(means, abs=1e-4)
