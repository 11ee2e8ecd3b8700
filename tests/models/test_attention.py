from dataclasses import replace

import pytest
import torch

from fastgrpo.models.attention import PackedLayout, choose_attention, padded_attention
from fastgrpo.policy.packing import pack
from fastgrpo.policy.policy import Policy
from tests.tiny import sequences, tiny_model


def logprobs_and_gradients(architecture: str, attention: str):
    policy = Policy(tiny_model(architecture, attention, torch.float64), temperature=1.0, head_chunk_tokens=64)
    logprobs, entropy = policy(pack(sequences(7)))
    (logprobs.sum() + entropy.sum()).backward()
    return logprobs.detach(), torch.cat([p.grad.flatten() for p in policy.parameters()])


@pytest.mark.parametrize("architecture", ["qwen2", "llama", "mistral"])
def test_padded_attention_equals_eager_and_sdpa_over_packed_rows(architecture):
    """Grouped heads in all, a sliding window shorter than the sequences in Mistral."""
    ours = logprobs_and_gradients(architecture, "fastgrpo_padded")
    for name, tolerance in (("sdpa", 1e-9), ("eager", 1e-4)):  # eager's softmax is float32 whatever the inputs
        for got, expected in zip(ours, logprobs_and_gradients(architecture, name), strict=True):
            torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("architecture", ["qwen2", "mistral"])
def test_packed_sequences_do_not_see_each_other(architecture):
    policy = Policy(tiny_model(architecture, "fastgrpo_padded", torch.float64), 1.0, 64)
    rows = sequences(7)
    together, _ = policy(pack(rows))
    alone = torch.cat([policy(pack([row]))[0] for row in rows])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("architecture", ["qwen2", "mistral"])
def test_sharing_prompts_changes_neither_logprobs_nor_gradients(architecture):
    prompt = sequences(1)[0].prompt
    rows = [replace(r, prompt=prompt) if i % 3 else r for i, r in enumerate(sequences(10))]
    found = []
    for share in (False, True):
        policy = Policy(tiny_model(architecture, "fastgrpo_padded", torch.float64), 1.0, 64)
        logprobs, entropy = policy(pack(rows, share_prompts=share))
        (logprobs.sum() + entropy.sum()).backward()
        found.append((logprobs.detach(), torch.cat([p.grad.flatten() for p in policy.parameters()])))
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_kernels_without_a_cpu_version_are_refused_there():
    with pytest.raises(ValueError, match="varlen has no CPU kernel"):
        choose_attention("varlen", torch.device("cpu"), torch.float32)
    assert choose_attention("auto", torch.device("cpu"), torch.float32) == "fastgrpo_padded"


def test_kernels_for_half_precision_are_refused_for_others():
    with pytest.raises(ValueError, match="varlen computes in bfloat16"):
        choose_attention("varlen", torch.device("cuda"), torch.float32)
    assert choose_attention("auto", torch.device("cuda"), torch.float32) == "fastgrpo_padded"


def test_an_option_that_packed_attention_lacks_is_refused():
    q = torch.zeros(1, 2, 3, 4)
    with pytest.raises(ValueError, match="softcap"):
        padded_attention(None, q, q, q, None, layout=PackedLayout(torch.tensor([0, 3]), 3), scaling=1.0, softcap=30.0)
