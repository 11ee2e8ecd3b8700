"""Qwen2.5-0.5B's shapes and vocabulary on real DAPO problems, with random weights and a byte tokenizer."""

import resource
import shutil
from pathlib import Path

import pytest
import torch
from fastgrpo_kernels.head.exponentials import ExponentialHead
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from fastgrpo.json_lines import JsonLines
from fastgrpo.train import main
from tests.conftest import TINY

pytestmark = pytest.mark.slow

DAPO = Path(__file__).parents[2].parent / "shared" / "data" / "train" / "dapo_math_17k_original.parquet"
VOCABULARY, CHUNK = 151_936, 32


@pytest.fixture(scope="module")
def half_billion(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen") / "model"
    tokenizer = Qwen2Tokenizer().train_new_from_iterator(["a"], 260, new_special_tokens=["<|user|>", "<|assistant|>"])
    tokenizer.chat_template = "<|user|>{{ messages[0]['content'] }}<|assistant|>"
    tokenizer.save_pretrained(folder)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    with torch.device("meta"):
        size = Qwen2ForCausalLM(config).num_parameters()
    assert 490e6 < size < 500e6
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
    model.save_pretrained(folder)
    yield folder
    shutil.rmtree(folder)


def test_a_step_is_finite_and_never_hold_the_logits_of_a_micro_batch(half_billion, tmp_path, monkeypatch, capsys):
    if not DAPO.exists():
        pytest.skip(f"needs {DAPO}")
    made, rows = ExponentialHead.__init__, []

    def watched(self, *inputs):
        made(self, *inputs)
        rows.append(len(self._buffer))  # all logits that exist at one time

    monkeypatch.setattr(ExponentialHead, "__init__", watched)
    settings = {
        "name": "half_billion",
        "runs_dir": tmp_path,
        "steps": 1,
        "model.path": half_billion,
        "model.head_chunk_tokens": CHUNK,
        "data.train": DAPO,
        "data.held_out": "",
        "data.max_prompt_tokens": 192,
        "data.prompts_per_step": 2,
        "rollout.group_size": 2,
        "rollout.max_response_tokens": 64,
        "optimizer.updates_per_step": 2,
        "optimizer.tokens_per_microbatch": 1024,
        "optimizer.learning_rate": 1e-6,
        "checkpoint.every_steps": 0,
        "reward.wrong": -1,
    }
    # The tiny recipe's own preparation is not wanted here: its base folder counts as made.
    (tmp_path / "half_billion" / "base" / "model").mkdir(parents=True)
    assert main([str(TINY), *(str(a) for name, value in settings.items() for a in (f"--{name}", value))]) == 0
    records = JsonLines(tmp_path / "half_billion" / "metrics.jsonl").read()
    assert [r["step"] for r in records] == [1]
    for record in records:
        assert all(record[name] is not None for name in ("entropy", "grad_norm", "rollout_kl", "reward"))
        assert abs(record["rollout_kl"]) < 1e-3
    assert max(rows) == CHUNK  # of the 128 response tokens of an update
    with capsys.disabled():
        print(f"\nreal shapes: peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")
    shutil.rmtree(tmp_path / "half_billion" / "checkpoints")
