"""Models of many kinds at the door of a run: trained rightly, or refused in words before anything is written."""

import json
import shutil

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from fastgrpo.json_lines import JsonLines
from fastgrpo.models import tiny, tiny_sizes
from fastgrpo.train import main
from tests.conftest import TINY


@pytest.fixture
def train_a(tmp_path, tiny_base, monkeypatch):
    """Trains the tiny recipe on a small random model of a type; returns the exit code."""

    def run(name: str, *arguments: str, **settings) -> int:
        base = tmp_path / "tiny" / "base"
        shutil.copytree(tiny_base, base)
        (base / "model" / "model.safetensors").unlink()
        tokenizer = AutoTokenizer.from_pretrained(base / "model")
        monkeypatch.setitem(tiny_sizes._SIZES, "vocab_size", len(tokenizer))
        config = tiny.tiny_config(AutoConfig.for_model(name, **settings))
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
        run.change(model)
        model.save_pretrained(base / "model")
        return main([str(TINY), "--runs_dir", str(tmp_path), "--steps", "2", *arguments])

    run.change = lambda model: None
    run.folder = tmp_path / "tiny"
    return run


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("qwen3_next", "qwen3_next) would be trained wrongly"),
        ("mamba", "a MambaForCausalLM computes attention, or what it has in its place, by code of its own"),
        ("modernbert-decoder", "fastgrpo computes nothing else there"),
        ("bloom", "bloom) would be sampled wrongly"),
    ],
)
def test_what_trainer_or_engine_do_not_know_is_refused_before_weights_load(train_a, capfd, name, words):
    assert train_a(name) == 2
    assert words in capfd.readouterr().err
    assert sorted(path.name for path in train_a.folder.iterdir()) == [".lock", "base"]


def test_broken_weights_are_refused_by_name_before_the_folder_is_touched(train_a, capfd):
    train_a.change = lambda model: model.model.norm.weight.data.fill_(float("nan"))
    assert train_a("llama") == 2
    assert "model.norm.weight" in capfd.readouterr().err
    assert sorted(path.name for path in train_a.folder.iterdir()) == [".lock", "base"]


def test_a_proof_that_is_skipped_says_so(train_a, capfd):
    assert train_a("bloom", "--model.skip_proof") == 2  # the engine knows by itself
    said = capfd.readouterr()
    assert "--model.skip_proof: nobody compares" in said.out
    assert "the attention of a BloomForCausalLM takes no cache but its own" in said.err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "gemma3", "gemma2", "granite", "stablelm"])
def test_models_of_many_kinds_train(train_a, capfd, name):
    assert train_a(name) == 0
    assert "trainer against the model's own forward pass" in capfd.readouterr().out
    for record in JsonLines(train_a.folder / "metrics.jsonl").read():
        assert record["step"] == 0 or abs(record["rollout_kl"]) < 1e-5
    exported = train_a.folder / "checkpoints" / "step_000002" / "hf" / "config.json"
    assert json.loads(exported.read_text())["model_type"] == name
