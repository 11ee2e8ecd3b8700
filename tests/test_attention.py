import pytest
import torch

from fastgrpo.attention import choose_attention
from fastgrpo.packing import pack
from fastgrpo.policy.model import Policy
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


def test_kernels_without_a_cpu_version_are_refused_there():
    with pytest.raises(ValueError, match="varlen has no CPU kernel"):
        choose_attention("varlen", torch.device("cpu"))
    assert choose_attention("auto", torch.device("cpu")) == "fastgrpo_padded"


def test_an_option_that_packed_attention_lacks_is_refused():
    from fastgrpo.attention import padded_attention

    q = torch.zeros(1, 2, 3, 4)
    with pytest.raises(ValueError, match="softcap"):
        padded_attention(
            None, q, q, q, None, cu_seq_lens_q=torch.tensor([0, 3]), max_length_q=3, scaling=1.0, softcap=30.0
        )
