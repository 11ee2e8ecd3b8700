"""A mixture of experts through a whole run: sampled, trained, written into the sampler, saved, gone on with."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import Qwen3MoeForCausalLM

from fastgrpo.train import main
from tests.conftest import TINY
from tests.run.mixture import put_mixture
from tests.run.test_run import results, weights_of

SETTINGS = ["--objective.router_aux_coef", "0.01", "--sync.compare_every", "1"]


@pytest.fixture(scope="module")
def mixture_base(tiny_base, tmp_path_factory) -> Path:
    """The base of the tiny recipe with a random Qwen3-MoE in the place of its model."""
    base = tmp_path_factory.mktemp("mixture") / "base"
    shutil.copytree(tiny_base, base)
    put_mixture(base, 9.0, tie_word_embeddings=True)
    return base


def train(runs: Path, base: Path, *arguments: str) -> int:
    if not (runs / "tiny").exists():
        shutil.copytree(base, runs / "tiny" / "base")
    return main([str(TINY), "--runs_dir", str(runs), *SETTINGS, *arguments])


@pytest.fixture(scope="module")
def whole(mixture_base, tmp_path_factory) -> Path:
    """The folder of a run of four steps on one rank."""
    runs = tmp_path_factory.mktemp("whole")
    assert train(runs, mixture_base) == 0
    return runs / "tiny"


def test_a_mixture_trains_agrees_with_its_sampler_and_is_exported(whole, mixture_base):
    """After every step all weights of the sampler are compared with the trainer's, and their logprobs too."""
    base = Qwen3MoeForCausalLM.from_pretrained(mixture_base / "model").state_dict()
    trained = weights_of(whole, 4)
    assert {n for n, w in base.items() if not torch.equal(trained[n], w)} == base.keys() == trained.keys()
    steps = results(whole)[1:]
    assert all(abs(step["rollout_kl"]) < 1e-5 and step["grad_norm"] > 0 for step in steps)
    assert all(step["entropy"] < 5.3 for step in steps)  # log 275 is 5.6: else any logprobs would agree


@pytest.mark.slow
def test_a_resumed_run_of_a_mixture_equals_a_whole_one(whole, mixture_base, tmp_path):
    assert train(tmp_path, mixture_base, "--steps", "2") == 0
    assert train(tmp_path, mixture_base, "--resume") == 0
    assert results(tmp_path / "tiny") == results(whole)
    trained = weights_of(whole, 4)
    for name, weight in weights_of(tmp_path / "tiny", 4).items():
        assert torch.equal(weight, trained[name]), name


@pytest.mark.slow
def test_two_ranks_train_the_same_mixture_as_one_and_resume(whole, mixture_base, tmp_path):
    shutil.copytree(mixture_base, tmp_path / "tiny" / "base")
    command = [sys.executable, "-m", "fastgrpo", "train", "--ranks", "2", str(TINY), "--runs_dir", str(tmp_path)]
    for arguments in (["--steps", "1"], ["--steps", "2", "--resume"]):
        subprocess.run([*command, *SETTINGS, *arguments], check=True, timeout=300, stdout=subprocess.DEVNULL)
    ours, alone = results(tmp_path / "tiny")[1:], results(whole)[1:3]
    assert [step["step"] for step in ours] == [1, 2]
    for step, expected in zip(ours, alone, strict=True):
        assert step["reward"] == pytest.approx(expected["reward"], abs=1e-6)
        assert step["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3)


def test_a_balance_of_experts_is_refused_for_a_model_without_any(tiny_base, tmp_path, capfd):
    assert train(tmp_path, tiny_base) == 2
    assert "transformers' own loss, and it has none for a Qwen2ForCausalLM: leave it 0" in capfd.readouterr().err
