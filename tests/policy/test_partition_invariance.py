"""The gradient of one update is the same for every number of ranks, micro-batch size and order of responses, and
whether or not shared prompts are computed once and responses without advantage are left out."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor

from fastgrpo.algorithm import Tokens
from fastgrpo.config import PRESETS, ObjectiveConfig, OptimizerConfig, ParallelConfig
from fastgrpo.policy.learner import Learner
from fastgrpo.policy.optimizer import gradient_norm, local_gradients
from fastgrpo.policy.packing import SequenceCost
from fastgrpo.policy.policy import Policy
from fastgrpo.policy.reference import Reference
from fastgrpo.policy.sharding import shard
from fastgrpo.policy.token_sums import TokenSums
from fastgrpo.ranks import Ranks
from fastgrpo.types import Sample
from tests.launched import run_ranks
from tests.tiny import sequences, tiny_model

REFERRED = (200, "shuffled", "memory, with a reference")
PARTITIONS = {  # (ranks, replicas): (tokens per micro-batch, order, what is spared: nothing, memory, all work)
    (1, 1): [(4096, "as sampled", "nothing"), (64, "as sampled", "all"), (200, "backwards", "nothing"), REFERRED],
    (2, 1): [(4096, "as sampled", "all"), (80, "shuffled", "nothing"), (64, "as sampled", "memory"), REFERRED],
    (4, 1): [(64, "as sampled", "nothing"), (4096, "backwards", "all")],
    (4, 2): [(80, "shuffled", "all"), (64, "shuffled", "memory"), REFERRED],
}
TOLERANCES = {"float32": 1e-6, "float64": 1e-12}


def own_loss(tokens: Tokens) -> torch.Tensor:
    """Some loss that looks at all it is given."""
    ratio = (tokens.logprobs - tokens.old_logprobs).exp()
    return -ratio.sqrt() * tokens.advantages + 0.1 * (tokens.entropy - tokens.rollout_logprobs).square()


OBJECTIVES: dict[str, dict[str, Any]] = {
    **{
        loss: {"loss": loss}
        for loss in PRESETS
        if loss not in ("grpo", "rloo", "reinforce_pp", "reinforce_pp_baseline")
    },
    "top entropy": {"top_entropy": 0.3},
    "clip-cov": {"clip_cov": 0.05, "clip_cov_low": 0.2},
    "kl-cov": {"kl_cov": 0.1},
    "top entropy and clip-cov of sapo": {"loss": "sapo", "top_entropy": 0.5, "clip_cov": 0.05, "clip_cov_low": 0.2},
    "router": {"router_aux_coef": 1.0},
    "own": {},
    "own, by sequences": {"aggregation": "sequence_mean"},
}
PARTS_OF_THEM = {  # (ranks, replicas): (tokens per micro-batch, order), the first one to compare with
    (1, 1): [(4096, "as sampled"), (64, "as sampled")],
    (2, 1): [(80, "shuffled")],
}


def responses() -> list[Sample]:
    """11 prompts of 3 responses; those of every third prompt have no advantage."""
    rows = sequences(33)
    prompts = [replace(rows[i - i % 3].prompt, position=i // 3) for i in range(33)]
    return [
        replace(row, prompt=prompt, advantage=0.0 if prompt.position % 3 == 2 else row.advantage)
        for row, prompt in zip(rows, prompts, strict=True)
    ]


def ordered(order: str) -> list[Sample]:
    """They, group by group in another order. In its group a sample is known by its place."""
    rows = responses()
    groups = [rows[i : i + 3] for i in range(0, 33, 3)]
    if order == "backwards":
        groups = groups[::-1]
    if order == "shuffled":
        groups = [groups[i] for i in torch.randperm(11, generator=torch.Generator().manual_seed(0)).tolist()]
    return [row for group in groups for row in group]


def shifted(dtype: torch.dtype, architecture: str = "qwen2") -> torch.nn.Module:
    """Another model, for a reference."""
    model = tiny_model(architecture, "fastgrpo_padded", dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.05)
    return model


def gradient(
    ranks: Ranks, dtype: torch.dtype, tokens_per_microbatch: int, order: str, spared: str
) -> dict[str, torch.Tensor]:
    """Of one update, with the sampler's logprobs as old ones so that ratios differ from 1."""
    policy = shard(Policy(tiny_model("qwen2", "fastgrpo_padded", dtype), 1.0, 16), ranks.mesh, dtype)
    reference, objective = None, ObjectiveConfig()
    if spared == "memory, with a reference":
        reference = Reference(shard(Policy(shifted(dtype), 1.0, 16), ranks.mesh, dtype))
        objective = ObjectiveConfig(kl="k2", kl_coef=0.3, entropy_coef=0.01)
    settings = OptimizerConfig(
        tokens_per_microbatch=tokens_per_microbatch,
        share_prompts=spared == "all",
        skip_zero_advantage=spared == "all",
        reduce_every_microbatch=spared.startswith("memory"),
    )
    learner = Learner(policy, ranks, SequenceCost(100.0, 1.0), objective, settings, reference=reference)
    learner.backward(learner.with_rollout_logprobs(learner.pack(ordered(order))), TokenSums.zero())
    gradients = {n: p.grad for n, p in policy.named_parameters()}
    whole = {n: g.full_tensor() if isinstance(g, DTensor) else g for n, g in gradients.items()}
    norm = float(gradient_norm(local_gradients(learner.parameters), ranks.mesh))
    assert norm == pytest.approx(float(joined(whole).double().norm()), rel=1e-5), "the norm that clips is this one"
    return whole


def gradient_of(ranks: Ranks, name: str, tokens_per_microbatch: int, order: str) -> dict[str, torch.Tensor]:
    """Of the step's second update, whose old logprobs are of other weights, in float64."""
    dtype, objective = torch.float64, ObjectiveConfig(**OBJECTIVES[name])
    architecture = "qwen3_moe" if name == "router" else "qwen2"
    policy = shard(Policy(shifted(dtype, architecture), 1.0, 16), ranks.mesh, dtype)
    settings = OptimizerConfig(tokens_per_microbatch=tokens_per_microbatch)
    own = own_loss if name.startswith("own") else None
    learner = Learner(
        policy, ranks, SequenceCost(100.0, 1.0), objective, settings, own_loss=own, max_response_tokens=50
    )
    update = replace(learner.pack(ordered(order)), is_first=False)
    if learner.chooses_tokens:
        update = learner.with_chosen_tokens(update, seed=3, step=5)
    else:
        update = learner.with_old_logprobs(update)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.02)
    learner.backward(update, TokenSums.zero())
    return {n: p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad for n, p in policy.named_parameters()}


def write_gradients(path: str, replicas: int) -> None:
    """What each rank runs: every partition of its launch in every dtype."""
    torch.set_num_threads(1)
    ranks = Ranks.connect(torch.device("cpu"), ParallelConfig(timeout_s=60, replicas=replicas))
    cases = [(dtype, *partition) for dtype in TOLERANCES for partition in PARTITIONS[ranks.count, replicas]]
    results = {case: gradient(ranks, getattr(torch, case[0]), *case[1:]) for case in cases}
    parts = PARTS_OF_THEM.get((ranks.count, replicas), [])
    results |= {("objective", name, *part): gradient_of(ranks, name, *part) for name in OBJECTIVES for part in parts}
    if ranks.is_first:
        torch.save(results, path)
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def gradients(tmp_path_factory):
    """{(dtype, ranks, replicas, tokens per micro-batch, order, spared): {parameter: gradient}}"""
    found = {}
    for num_ranks, replicas in PARTITIONS:
        path = tmp_path_factory.mktemp("gradients") / "gradients.pt"
        run_ranks(f"from {__name__} import write_gradients; write_gradients({str(path)!r}, {replicas})", num_ranks)
        found |= {(case[0], num_ranks, replicas, *case[1:]): g for case, g in torch.load(path).items()}
    return found


@pytest.mark.parametrize("name", OBJECTIVES)
def test_neither_does_that_of_any_objective(gradients, name):
    mine = {case[1:3] + case[4:]: g for case, g in gradients.items() if case[0] == "objective" and case[3] == name}
    (_, first), *others = mine.items()
    everything = joined(first)
    assert len(others) == 2 and float(everything.norm()) > 0
    tolerance = 1e-7 if name == "router" else 1e-12  # a router computes its softmax in float32, whatever its input
    for case, other in others:
        assert float((joined(other) - everything).norm()) <= tolerance * float(everything.norm()), case
    of_others = [g for case, g in gradients.items() if case[0] == "objective" and case[3] != name]
    assert all(not torch.equal(joined(g), everything) for g in of_others)


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES.items())
def test_gradient_does_not_depend_on_the_partition(gradients, dtype, tolerance):
    plain, referred = (gradients[dtype, 1, 1, *case] for case in ((4096, "as sampled", "nothing"), REFERRED))
    assert float((joined(plain) - joined(referred)).norm()) > 1e-3 * float(joined(plain).norm())
    for case, other in gradients.items():
        if case[0] != dtype:
            continue
        whole = referred if case[3:] == REFERRED else plain
        for name, expected in whole.items():
            norm = float(expected.norm())
            assert norm > 0
            assert abs(float(other[name].norm()) - norm) <= tolerance * norm, f"{case}: {name}"
        everything, difference = joined(whole), joined(other) - joined(whole)
        assert float(difference.norm()) <= tolerance * float(everything.norm()), case


def joined(gradients: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([g.flatten() for g in gradients.values()])
