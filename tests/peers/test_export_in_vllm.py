"""vLLM reads an export by its own names and means by it what transformers does."""

import os

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.models.exports import as_base, trained, write_export

vllm = pytest.importorskip("vllm", reason="needs vLLM, in an environment of its own: `make test-full`")
pytestmark = pytest.mark.peers

SMALL = {
    "vocab_size": 320,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
}
TYPES = {
    "qwen2": {"tie_word_embeddings": True},
    "llama": {"tie_word_embeddings": False},
    "mistral": {"sliding_window": 16},
    "gemma3_text": {"sliding_window": 16, "query_pre_attn_scalar": 32, "num_hidden_layers": 6},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
}


@pytest.mark.parametrize("kind", TYPES)
def test_vllm_gives_the_logprobs_of_an_export_that_transformers_gives(kind, tmp_path):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL | TYPES[kind]))
    with torch.no_grad():  # the usual initialisation makes nearly uniform predictions, which hide mistakes
        for weight in (p for p in model.parameters() if p.dim() > 1):
            weight.mul_(3.0)
    base = as_base(model.eval(), tmp_path / "base")
    model = trained(base)
    write_export(model, base, tmp_path / "hf")

    ids = torch.randint(3, 320, (3, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logprobs = model(input_ids=ids, use_cache=False).logits[:, :-1].log_softmax(-1)
    ours = logprobs.gather(-1, ids[:, 1:, None])[..., 0]
    assert ours.std() > 0.3

    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    engine = vllm.LLM(str(tmp_path / "hf"), dtype="float32", enforce_eager=True, max_model_len=64, max_num_seqs=8)
    settings = vllm.SamplingParams(max_tokens=1, prompt_logprobs=0)
    outputs = engine.generate([{"prompt_token_ids": row} for row in ids.tolist()], settings)
    theirs = [
        [place[token].logprob for place, token in zip(output.prompt_logprobs[1:], row[1:], strict=True)]
        for output, row in zip(outputs, ids.tolist(), strict=True)
    ]
    assert (torch.tensor(theirs) - ours).abs().max() < 1e-4
