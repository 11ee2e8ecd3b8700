"""A mixture of experts through a whole run: sampled, trained, written into the sampler, saved, gone on with."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, Qwen3MoeConfig, Qwen3MoeForCausalLM

from fastgrpo.train import main
from tests.conftest import TINY
from tests.run.test_kills import steps_done
from tests.run.test_run import results, weights_of
from tests.tiny import EXPERTS, SHAPE

SETTINGS = ["--objective.router_aux_coef", "0.01", "--sync.compare_every", "1"]


@pytest.fixture(scope="module")
def mixture_base(tiny_base, tmp_path_factory) -> Path:
    """The base of the tiny recipe with a random Qwen3-MoE in the place of its model."""
    base = tmp_path_factory.mktemp("mixture") / "base"
    shutil.copytree(tiny_base, base)
    tokenizer = AutoTokenizer.from_pretrained(base / "model")
    end = tokenizer.eos_token_id
    torch.manual_seed(0)
    shape = {**SHAPE, **EXPERTS, "vocab_size": len(tokenizer), "eos_token_id": end, "pad_token_id": end}
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(head_dim=8, tie_word_embeddings=True, **shape))
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=end)
    (base / "model" / "model.safetensors").unlink()
    model.save_pretrained(base / "model")
    return base


def train(runs: Path, base: Path, *arguments: str) -> int:
    if not (runs / "tiny").exists():
        shutil.copytree(base, runs / "tiny" / "base")
    return main([str(TINY), "--runs_dir", str(runs), *SETTINGS, *arguments])


def test_a_mixture_trains_agrees_with_its_sampler_and_a_resumed_run_equals_a_whole_one(mixture_base, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(whole, mixture_base) == 0
    assert train(parts, mixture_base, "--steps", "2") == 0
    assert train(parts, mixture_base, "--resume") == 0
    assert results(parts / "tiny") == results(whole / "tiny")
    trained, base = weights_of(whole / "tiny", 4), Qwen3MoeForCausalLM.from_pretrained(mixture_base / "model")
    for name, weight in weights_of(parts / "tiny", 4).items():
        assert torch.equal(weight, trained[name]), name
    moved = {n for n, w in base.state_dict().items() if not torch.equal(trained[n], w)}
    assert moved == trained.keys()
    steps = results(whole / "tiny")[1:]
    assert all(abs(step["rollout_kl"]) < 1e-5 and step["grad_norm"] > 0 for step in steps)
    exported = AutoModelForCausalLM.from_pretrained(whole / "tiny" / "checkpoints" / "step_000004" / "hf")
    assert isinstance(exported, Qwen3MoeForCausalLM)


@pytest.mark.slow
def test_two_ranks_train_the_same_mixture_as_one(mixture_base, tmp_path):
    alone, both = tmp_path / "alone", tmp_path / "both"
    assert train(alone, mixture_base) == 0
    assert train(both, mixture_base, "--ranks", "2", "--steps", "2") == 0
    assert steps_done(both / "tiny") == 2
    assert train(both, mixture_base, "--ranks", "2", "--resume") == 0
    for ours, expected in zip(results(both / "tiny")[1:], results(alone / "tiny")[1:], strict=True):
        assert ours["reward"] == pytest.approx(expected["reward"], abs=1e-6)
        assert ours["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3)


def test_a_balance_of_experts_is_refused_for_a_model_without_any(tiny_base, tmp_path, capfd):
    assert train(tmp_path, tiny_base) == 2
    assert "a Qwen2ForCausalLM has no routers that transformers knows: leave it 0" in capfd.readouterr().err
