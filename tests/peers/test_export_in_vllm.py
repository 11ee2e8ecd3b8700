"""The Hugging Face export of a checkpoint loads in vLLM and means the same there."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fastgrpo.config import ModelConfig
from fastgrpo.models.load import load_causal_lm
from fastgrpo.rollout.builtin.engine import BuiltinEngine
from fastgrpo.rollout.builtin.kv_cache import ATTENTION
from fastgrpo.rollout.generate import generate
from fastgrpo.train import main
from fastgrpo.types import Prompt, Sampling
from tests.conftest import TINY

vllm = pytest.importorskip("vllm", reason="needs vLLM, in an environment of its own: `make test-full`")
pytestmark = pytest.mark.peers


def export(folder: Path, base: Path) -> Path:
    shutil.copytree(base, folder / "runs" / "tiny" / "base")
    assert main([str(TINY), "--runs_dir", str(folder / "runs"), "--steps", "2"]) == 0
    return folder / "runs" / "tiny" / "checkpoints" / "step_000002" / "hf"


def test_greedy_tokens_in_vllm_are_those_of_the_built_in_engine(tmp_path, tiny_base):
    path = export(tmp_path, tiny_base)
    model = load_causal_lm(ModelConfig(path=str(path)), torch.device("cpu"), torch.float32, ATTENTION)
    random = np.random.default_rng(0)
    prompts = [Prompt.of_ids(random.integers(1, 200, 9).astype(np.int32), i) for i in range(8)]
    ours = generate(BuiltinEngine(model, 8), prompts, Sampling(1, 12, temperature=0.0))

    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    engine = vllm.LLM(str(path), dtype="float32", enforce_eager=True, max_model_len=64, max_num_seqs=8)
    settings = vllm.SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
    theirs = engine.generate([{"prompt_token_ids": p.prompt_ids.tolist()} for p in prompts], settings)
    for group, output in zip(ours, theirs, strict=True):
        assert group[0].response.response_ids.tolist() == list(output.outputs[0].token_ids)
