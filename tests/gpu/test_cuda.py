"""The same claims as on the CPU, in bfloat16 on a CUDA GPU."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from fastgrpo_kernels import linear_logprobs, reference

from fastgrpo.config import ModelConfig, ObjectiveConfig, OptimizerConfig, ParallelConfig
from fastgrpo.models.packed_batch import PackedBatch
from fastgrpo.policy.learner import Learner
from fastgrpo.policy.packing import SequenceCost, pack
from fastgrpo.policy.policy import Policy, as_policy
from fastgrpo.policy.sharding import shard
from fastgrpo.policy.token_sums import TokenSums
from fastgrpo.ranks import Ranks, choose_device
from fastgrpo.rollout.builtin.engine import BuiltinEngine
from fastgrpo.rollout.builtin.kv_cache import ATTENTION
from fastgrpo.rollout.generate import generate
from fastgrpo.train import main
from fastgrpo.types import Prompt, Sample, Sampling
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
    shared = sequences(1)[0].prompt
    rows = [
        Sample(Prompt.of_ids(shared), r.response, advantage=r.advantage) if i % 2 else r
        for i, r in enumerate(sequences(9))
    ]
    found = []
    for attention in ("fastgrpo_varlen", "sdpa"):
        model = tiny_model(architecture, attention).to("cuda", torch.bfloat16)
        share = share_prompts and attention != "sdpa"
        with torch.no_grad():
            found.append(Policy(model, 1.0, 64)(pack(rows, share_prompts=share).to(torch.device("cuda")))[0])
    assert float((found[0] - found[1]).abs().mean()) < 0.02


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    yield Ranks.connect(choose_device("cuda"), ParallelConfig())
    torch.distributed.destroy_process_group()


def gradient(ranks: Ranks, model: ModelConfig, tokens_per_microbatch: int) -> torch.Tensor:
    policy = as_policy(tiny_model("qwen2", "fastgrpo_varlen"), model, 1.0)
    sharded = shard(policy, ranks.mesh, torch.bfloat16)
    settings = OptimizerConfig(tokens_per_microbatch=tokens_per_microbatch)
    learner = Learner(sharded, ranks, SequenceCost(100.0, 1.0), ObjectiveConfig(), settings)
    update = learner.with_rollout_logprobs(learner.pack(sequences(40)))
    learner.backward(update, TokenSums.zero(ranks.device))
    return torch.cat([p.grad.full_tensor().flatten() for p in learner.parameters])


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


def test_the_gradient_does_not_depend_on_the_micro_batches_but_by_rounding(ranks):
    plain = ModelConfig(activation_checkpointing=False)
    whole = gradient(ranks, plain, 4096)
    for tokens in (64, 200):
        assert relative(gradient(ranks, plain, tokens), whole) < 0.01


def test_recomputed_and_compiled_layers_have_the_same_gradient_but_for_rounding(ranks):
    plain = ModelConfig(activation_checkpointing=False)
    expected = gradient(ranks, plain, 200)
    assert relative(gradient(ranks, replace(plain, activation_checkpointing=True), 200), expected) < 0.01
    assert relative(gradient(ranks, replace(plain, compile=True), 200), expected) < 0.03


def test_a_batch_arrives_as_it_is():
    shared = [replace(s, prompt=sequences(1)[0].prompt) for s in sequences(6)]
    for share in (False, True):
        batch = pack(shared, share_prompts=share)
        moved = batch.to(torch.device("cuda"))
        assert (moved.shared is not None) == share
        for name, there in tensors_of(moved).items():
            here = tensors_of(batch)[name]
            assert there.is_cuda and there.dtype == here.dtype and there.data_ptr() % 16 == 0
            assert torch.equal(there.cpu(), here), name


def tensors_of(batch: PackedBatch) -> dict[str, torch.Tensor]:
    found = {name: getattr(batch, name) for name in PackedBatch.__slots__}
    shared = found.pop("shared")
    found |= {"select": shared.select, "expand": shared.expand} if shared else {}
    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}


def test_sampled_logprobs_are_those_of_the_policy():
    engine = BuiltinEngine(tiny_model("qwen2", ATTENTION).to("cuda", torch.bfloat16), 64)
    groups = generate(engine, prompts(9), Sampling(3, 20, 0.8, (0, 5), 7))
    rows = [sample for group in groups for sample in group]
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
