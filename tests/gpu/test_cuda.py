"""The same claims as on the CPU, in bfloat16 on a CUDA GPU."""

import numpy as np
import pytest
import torch
from fastgrpo_kernels import linear_logprobs, reference

from fastgrpo.packing import pack
from fastgrpo.policy.model import Policy
from fastgrpo.rollout.builtin import BuiltinEngine
from fastgrpo.rollout.engine import generate
from fastgrpo.rollout.kv_cache import ATTENTION
from fastgrpo.train import main
from fastgrpo.types import Sampling, Sequence
from tests.conftest import TINY
from tests.tiny import prompts, sequences, tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


@pytest.mark.parametrize(("num_tokens", "vocabulary"), [(1, 257), (63, 50_257), (1000, 151_936)])
def test_logprobs_of_bfloat16_are_as_exact_as_twice_plain_torch(num_tokens, vocabulary):
    generator = torch.Generator("cuda").manual_seed(0)
    hidden = torch.randn(num_tokens, 256, device="cuda", generator=generator).bfloat16().requires_grad_()
    weight = (0.1 * torch.randn(vocabulary, 256, device="cuda", generator=generator)).bfloat16().requires_grad_()
    target_ids = torch.randint(vocabulary, (num_tokens,), device="cuda", generator=generator)

    def run(function, dtype, **options):
        tensors = [t.detach().to(dtype).requires_grad_() for t in (hidden, weight)]
        logprobs, entropy = function(*tensors, target_ids, **options)
        (logprobs.double().sum() + entropy.double().sum()).backward()
        return [logprobs.detach(), entropy.detach(), *(t.grad for t in tensors)]

    truth = run(reference.linear_logprobs, torch.float64)
    plain = run(reference.linear_logprobs, torch.bfloat16)
    ours = run(linear_logprobs, torch.bfloat16, entropy=True)
    for got, torch_got, right in zip(ours, plain, truth, strict=True):
        floor = 4 * torch.finfo(got.dtype).eps * max(1.0, float(right.abs().max()))
        allowed = 2 * float((torch_got.double() - right).abs().max()) + floor
        assert float((got.double() - right).abs().max()) <= allowed


@pytest.mark.parametrize("share_prompts", [False, True])
@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
def test_varlen_attention_gives_the_logprobs_of_sdpa(architecture, share_prompts):
    shared = sequences(1)[0].prompt_ids
    rows = [Sequence(shared, r.response, r.advantage) if i % 2 else r for i, r in enumerate(sequences(9))]
    found = []
    for attention in ("fastgrpo_varlen", "sdpa"):
        model = tiny_model(architecture, attention).to("cuda", torch.bfloat16)
        share = share_prompts and attention != "sdpa"
        with torch.no_grad():
            found.append(Policy(model, 1.0, 64)(pack(rows, share_prompts=share).to(torch.device("cuda")))[0])
    assert float((found[0] - found[1]).abs().mean()) < 0.02


def test_sampled_logprobs_are_those_of_the_policy():
    engine = BuiltinEngine(tiny_model("qwen2", ATTENTION).to("cuda", torch.bfloat16), 64)
    groups = generate(engine, prompts(9), Sampling(3, 20, 0.8, (0, 5), 7))
    rows = [Sequence(g.prompt.prompt_ids, r, 0.0) for g in groups for r in g.responses]
    model = tiny_model("qwen2", "fastgrpo_varlen").to("cuda", torch.bfloat16)
    with torch.no_grad():
        logprobs, _ = Policy(model, 0.8, 64)(pack(rows).to(torch.device("cuda")))
    sampled = torch.from_numpy(np.concatenate([r.response.rollout_logprobs for r in rows]))
    assert float((sampled - logprobs.cpu()).abs().mean()) < 0.02


def test_a_run_trains_and_resumes_on_the_gpu(tmp_path, tiny_base):
    import shutil

    shutil.copytree(tiny_base, tmp_path / "tiny" / "base")
    settings = [str(TINY), "--runs_dir", str(tmp_path), "--device", "cuda"]
    assert main([*settings, "--steps", "2"]) == 0
    assert main([*settings, "--steps", "4", "--resume"]) == 0


def test_a_recipe_with_a_reference_and_phases_runs_in_small(tmp_path):
    assert main(["prorl_v2_1_5b", "--shrink", "--runs_dir", str(tmp_path), "--device", "cuda"]) == 0
