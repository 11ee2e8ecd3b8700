from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from fastgrpo.models.attention import asked_of, choose_attention, padded_attention
from fastgrpo.models.layout import PackedLayout, hold_layout, layout_of
from fastgrpo.policy.packing import pack
from fastgrpo.policy.policy import Policy
from fastgrpo.types import Sample
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


BEYOND_PLAIN = {"gemma2": {"softcap"}, "gpt_oss": {"s_aux"}, "deepseek_v3": set(), "stablelm": set()}


def one_by_one(model: PreTrainedModel, rows: list[Sample]) -> torch.Tensor:
    """The logprobs of the responses by transformers' own forward pass, without neighbours."""
    parts = []
    for row in rows:
        tokens = torch.from_numpy(np.concatenate([row.prompt.prompt_ids, row.response.response_ids]).astype(np.int64))
        logprobs = model(input_ids=tokens[None], use_cache=False).logits[0, :-1].log_softmax(-1)
        parts.append(logprobs.gather(1, tokens[1:, None])[len(row.prompt.prompt_ids) - 1 :, 0])
    return torch.cat(parts)


@pytest.mark.parametrize("architecture", BEYOND_PLAIN)
def test_softcaps_sinks_narrow_values_and_held_layouts_are_those_of_transformers(architecture):
    """Gemma 2 has a softcap, GPT-OSS sinks, both windows; DeepSeek's values are narrower than its queries; StableLM's
    attention has an argument of its own."""
    prompt = sequences(1)[0].prompt
    rows = [replace(r, prompt=prompt) if i % 3 else r for i, r in enumerate(sequences(6))]
    plain = tiny_model(architecture, "eager")
    expected = one_by_one(plain, rows)
    expected.sum().backward()
    for share in (False, True):
        policy = Policy(tiny_model(architecture, "fastgrpo_padded"), 1.0, 64)
        got, _ = policy(pack(rows, share_prompts=share), entropy=False)
        got.sum().backward()
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
        for mine, theirs in zip(policy.model.parameters(), plain.parameters(), strict=True):
            assert (mine.grad is None) == (theirs.grad is None)
            if theirs.grad is not None:
                torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-4)


def asked(architecture: str) -> frozenset[str]:
    return asked_of(tiny_model(architecture, "eager").to("meta"))


@pytest.mark.parametrize(("architecture", "beyond_plain"), [*BEYOND_PLAIN.items(), ("qwen3_moe", set())])
def test_what_a_model_asks_of_its_attention_is_seen_without_its_weights(architecture, beyond_plain):
    assert asked(architecture) == beyond_plain


@pytest.mark.parametrize("setting", ["varlen", "sdpa"])
def test_attention_that_cannot_compute_what_a_model_asks_for_is_refused_and_auto_takes_another(setting):
    gpu, half = torch.device("cuda"), torch.bfloat16
    for architecture, words in {"gemma2": "a softcap of attention scores", "gpt_oss": "attention sinks"}.items():
        with pytest.raises(ValueError, match=rf"this model has {words}, which --model.attention {setting} lacks: use"):
            choose_attention(setting, gpu, half, asked(architecture))
        assert choose_attention("auto", gpu, half, asked(architecture)) == "fastgrpo_padded"
    assert choose_attention("auto", gpu, half, asked("qwen3_moe")) != "fastgrpo_padded"


def test_a_model_with_attention_of_its_own_is_refused():
    with pytest.raises(ValueError, match="a BloomForCausalLM computes attention, or what it has"):
        asked("bloom")


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ({"position_bias": torch.ones(1)}, "attention uses position_bias, which fastgrpo does not know"),
        ({"indices": torch.ones(1), "block_indices": 1}, "uses block_indices, indices"),
        ({"is_causal": False}, "looks ahead"),
        ({"dropout": 0.1}, "attention dropout makes logprobs random"),
    ],
)
def test_an_argument_that_would_change_the_result_is_never_dropped(named, words):
    q = torch.zeros(1, 2, 3, 4)
    layout = PackedLayout(torch.tensor([0, 3]), 3)
    with pytest.raises(ValueError, match=words):
        padded_attention(None, q, q, q, None, layout=layout, scaling=1.0, **named)
    with pytest.raises(ValueError, match="makes an attention mask of its own"):
        padded_attention(None, q, q, q, torch.ones(3, 3), layout=layout, scaling=1.0)
    padded_attention(None, q, q, q, None, layout=layout, scaling=1.0, position_ids=q, position_bias=None)


def test_a_layout_that_is_handed_on_goes_before_the_one_that_is_held():
    module, given = torch.nn.Linear(1, 1), PackedLayout(torch.tensor([0, 3]), 3)
    hold_layout(module).layout = PackedLayout(torch.tensor([0, 2, 3]), 2)
    named = {"layout": given, "scaling": 1.0}
    assert layout_of(module, named) is given and named == {"scaling": 1.0}
    assert layout_of(module, {}).max_seqlen == 2


def test_compiled_attention_reads_the_held_layout_of_each_pass():
    module, random = torch.nn.Linear(1, 1), torch.Generator().manual_seed(0)
    holder = hold_layout(module)

    def attention(q: torch.Tensor) -> torch.Tensor:
        return padded_attention(module, q, q, q, None, scaling=1.0)[0]

    compiled = torch.compile(attention, backend="eager", dynamic=True)
    for lengths in ([3, 5], [4, 4, 1], [2]):
        bounds = torch.tensor([0, *lengths]).cumsum(0)
        holder.layout = PackedLayout(bounds, max(lengths))
        holder.layout.padding(int(bounds[-1]))
        q = torch.randn(1, 2, int(bounds[-1]), 4, generator=random)
        torch.testing.assert_close(compiled(q), attention(q))
