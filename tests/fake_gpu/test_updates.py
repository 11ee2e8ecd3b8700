"""What is true of an update on a device whose values mean nothing: waits, peaks, compilations."""

import gc
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from fastgrpo_kernels import Objective, group_advantages, grpo_loss, linear_grpo, linear_logprobs

from bench.shapes import QWEN3_0_6B, QWEN25_1_5B, Shape
from bench.synthetic import random_learner, random_sequences
from fastgrpo.config import ModelConfig, ObjectiveConfig, OptimizerConfig, ParallelConfig
from fastgrpo.policy.activations import fit
from fastgrpo.policy.learner import Learner
from fastgrpo.policy.packing import pack
from fastgrpo.policy.token_sums import TokenSums
from fastgrpo.ranks import Ranks, choose_device
from tests.fake_gpu.environment import Counts, launches_by_name
from tests.gpu.test_cuda import test_a_batch_arrives_as_it_is
from tests.tiny import sequences

GIB = 2**30
TOKENS = 16384
NO_CHECKPOINTS = ModelConfig(activation_checkpointing=False)
CHECKPOINTS = ModelConfig(activation_checkpointing=True)


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    torch._dynamo.reset()  # compiled layers hold their weights
    gc.collect()
    torch.cuda.empty_cache()
    yield Ranks.connect(choose_device("cuda"), ParallelConfig())
    torch.distributed.destroy_process_group()


def learner_of(
    ranks: Ranks, shape: Shape, model: ModelConfig = NO_CHECKPOINTS, tokens: int = TOKENS, **objective: object
) -> Learner:
    settings = OptimizerConfig(tokens_per_microbatch=tokens)
    return random_learner(shape, ranks, model, settings, objective=ObjectiveConfig(**objective))  # type: ignore[arg-type]


def update(learner: Learner, shape: Shape, *lengths: int) -> Counts:
    """What one update with two micro-batches counts."""
    sequences = random_sequences(shape, lengths or (TOKENS, TOKENS), 128)
    before = Counts.now()
    packed = learner.pack(sequences)
    learner.backward(packed, TokenSums.zero(learner.ranks.device))
    learner.apply(1e-6)
    return Counts.now().since(before)


def peak_gib(learner: Learner, shape: Shape) -> float:
    """Of an update when AdamW's moments exist."""
    update(learner, shape)
    torch.cuda.reset_peak_memory_stats()
    update(learner, shape)
    return torch.cuda.max_memory_allocated() / GIB


@pytest.mark.parametrize(
    "objective",
    [{}, {"correction": "truncate"}, {"kl_coef": 0.0, "entropy_coef": 0.01}, {"loss_path": "logprobs"}],
    ids=lambda o: ", ".join(f"{k} {v}" for k, v in o.items()) or "plain",
)
@pytest.mark.parametrize("checkpointing", [True, False])
def test_the_host_waits_once_an_update(ranks, objective, checkpointing):
    shape = replace(QWEN3_0_6B, num_layers=4)
    learner = learner_of(ranks, shape, CHECKPOINTS if checkpointing else NO_CHECKPOINTS, 4096, **objective)
    update(learner, shape, 4096, 3000, 1000)
    counted = update(learner, shape, 4096, 3000, 1000)
    assert counted.waits == 1
    assert counted.unpinned_copies == 0
    assert counted.launches > 100


def test_old_logprobs_cost_no_wait(ranks):
    shape = replace(QWEN3_0_6B, num_layers=2)
    learner = learner_of(ranks, shape, tokens=4096)
    packed = learner.pack(random_sequences(shape, (4096, 4096), 128))
    learner.with_old_logprobs(packed)
    before = Counts.now()
    learner.with_old_logprobs(packed)
    assert Counts.now().since(before).waits == 0


def test_the_kernels_wait_for_nothing():
    hidden = torch.randn(300, 64, device="cuda").bfloat16().requires_grad_()
    weight = torch.randn(1000, 64, device="cuda").bfloat16().requires_grad_()
    ids, advantages = torch.zeros(300, dtype=torch.int64, device="cuda"), torch.ones(300, device="cuda")
    bounds = torch.arange(0, 301, 10, device="cuda")
    mask = torch.ones(300, dtype=torch.bool, device="cuda")

    def every_op() -> None:
        for objective in (Objective(), Objective(entropy_coef=0.1), Objective(ratio="sequence")):
            linear_grpo(
                hidden, weight, ids, advantages, advantages, mask, 300, objective, cu_seqlens=bounds
            ).loss.backward()
        logprobs, _ = linear_logprobs(hidden, weight, ids, entropy=True)
        grpo_loss(logprobs, logprobs.detach(), advantages, mask, 300, entropy=None).loss.backward()
        group_advantages(advantages, 10)
        group_advantages(advantages, cu_groups=bounds)

    every_op()
    before = Counts.now()
    every_op()
    counted = Counts.now().since(before)
    assert (counted.waits, counted.unpinned_copies, counted.wrong_launches) == (0, 0, 0)


def test_a_batch_arrives_as_it_is_and_is_not_waited_for():
    test_a_batch_arrives_as_it_is()
    batch = pack(sequences(6))
    before = Counts.now()
    batch.to(torch.device("cuda"))
    counted = Counts.now().since(before)
    assert (counted.waits, counted.unpinned_copies) == (0, 0)


@pytest.mark.parametrize(
    ("model", "bar_gib"),
    [
        (replace(NO_CHECKPOINTS, compile=True), 60.0),
        (NO_CHECKPOINTS, 72.0),
        (CHECKPOINTS, 28.0),
        (replace(CHECKPOINTS, compile=True), 28.0),
    ],
    ids=["compiled", "plain", "checkpointed", "checkpointed and compiled"],
)
def test_peak_of_1_5b_at_16k(ranks, model, bar_gib):
    """Masters, moments and float32 gradients alone are 23.0 GiB."""
    peak = peak_gib(learner_of(ranks, QWEN25_1_5B, model), QWEN25_1_5B)
    print(f"1.5B at 16k, {model.activation_checkpointing=}, {model.compile=}: {peak:.2f} GiB")
    assert peak <= bar_gib


def test_peak_of_prime_rls_protocol(ranks):
    assert peak_gib(learner_of(ranks, QWEN3_0_6B, CHECKPOINTS), QWEN3_0_6B) <= 14


@pytest.mark.parametrize("tokens", [16384, 32768, 65536])
def test_layers_recompute_as_free_memory_asks_for_and_the_allocator_never_starts_over(ranks, tokens):
    model = ModelConfig(activation_checkpointing="auto")
    learner = learner_of(ranks, QWEN25_1_5B, model, tokens)
    recomputed = fit(learner.policy, ranks, model, OptimizerConfig(tokens_per_microbatch=tokens))
    torch.cuda.reset_accumulated_memory_stats()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        update(learner, QWEN25_1_5B, tokens, tokens)
    stats = torch.cuda.memory_stats()
    total = torch.cuda.get_device_properties(0).total_memory
    spent = torch.cuda.max_memory_reserved() / total
    print(f"{tokens} tokens on {total / GIB:.1f} GiB: {recomputed} of 28 layers recompute, {spent:.0%} reserved")
    assert stats["num_alloc_retries"] == stats["num_ooms"] == 0
    if total < 100 * GIB:
        assert recomputed > 0 and spent > 0.75  # what is free is spent
    assert Counts.now().wrong_launches == 0


def test_layers_are_compiled_once_whatever_the_number_of_tokens(ranks):
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    shape = replace(QWEN25_1_5B, num_layers=3)
    learner = learner_of(ranks, shape, replace(NO_CHECKPOINTS, compile=True))
    for lengths in ((16384, 16384), (9000, 3000), (500, 200, 4096)):
        update(learner, shape, *lengths)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_shapes_of_a_run_share_few_specialisations(ranks):
    """Token counts differ at every micro-batch: a kernel compiled anew for each would be seconds a step."""
    shape = replace(QWEN3_0_6B, num_layers=1)
    learner = learner_of(ranks, shape, tokens=8192)
    rng = torch.Generator().manual_seed(0)
    for _ in range(12):
        update(learner, shape, *torch.randint(200, 4000, (4,), generator=rng).tolist())
    found = specialisations()
    print(f"variants of each kernel: {found}")
    assert found and max(found.values()) <= 8, found
    assert set(found) <= set(launches_by_name())


def specialisations() -> dict[str, int]:
    """Compiled variants of each of our Triton kernels in this process."""
    import importlib

    kernels = {}
    for name in ("groups", "rows", "tiles", "token_objective"):
        module = importlib.import_module(f"fastgrpo_kernels.gpu.{name}")
        kernels |= {n: k for n, k in vars(module).items() if hasattr(k, "device_caches") and n.startswith("_")}
    counted = {name: sum(len(cache[0]) for cache in kernel.device_caches.values()) for name, kernel in kernels.items()}
    return {name: count for name, count in counted.items() if count}
