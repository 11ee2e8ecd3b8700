"""What single ranks of the tests of vLLM's weights run, each in an interpreter of its own."""

import os
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any

import torch
import torch.distributed as dist

from fastgrpo.config import Config, DataConfig, ModelConfig, ParallelConfig, RolloutConfig, SyncConfig
from fastgrpo.policy.policy import Policy
from fastgrpo.policy.sharding import full_weights, shard
from fastgrpo.ranks import Ranks
from fastgrpo.rollout.local_rollouts import LocalRollouts
from fastgrpo.rollout.prompts_in_order import PromptsInOrder
from fastgrpo.rollout.servers.start import start_servers
from fastgrpo.rollout.weight_sync import manifest
from fastgrpo.types import Group, Prompt, Response, Sample, Sampling
from tests.peers import vllm_models as tiny

CPU = torch.device("cpu")


@dataclass
class Stream:
    """Prompts by position, as the data's own stream gives them."""

    def prompts_at(self, start: int, count: int) -> list[Prompt]:
        return [tiny.prompts(1, seed=start + i, first=start + i)[0] for i in range(count)]


def sharded_policy(name: str, ranks: Ranks, **changes: Any) -> Policy:
    model = tiny.model_with(name, tiny.random_weights(name, 0, **changes), "fastgrpo_padded", **changes)
    return shard(Policy(model, 0.8, 64), ranks.mesh, torch.float32)


@torch.no_grad()
def set_weights(policy: Policy, weights: tiny.Weights) -> None:
    """Every rank sets its own rows."""
    for name, parameter in policy.model.named_parameters():
        mine: Any = parameter.data
        local = mine.to_local()
        rows = -(-len(weights[name]) // dist.get_world_size())
        local.copy_(weights[name][rows * dist.get_rank() : rows * dist.get_rank() + len(local)])


def assert_trainer_agrees(name: str, weights: tiny.Weights, groups: Any, **changes: Any) -> None:
    pairs = tiny.pairs_of(groups)
    ours = tiny.trainer_logprobs(name, weights, pairs, 0.8, **changes)
    assert tiny.largest_gap([r.rollout_logprobs for _, r in pairs], ours) < 1e-4


def colocated(path: str, name: str, key_heads: int) -> None:
    """Two ranks that train share an engine: both step it, both write into it."""
    changes = {"num_key_value_heads": key_heads}
    ranks = Ranks.connect(CPU, ParallelConfig(timeout_s=200))
    engine = tiny.start(path, executor="external_launcher", tensor_parallel=2)
    assert engine.not_in_place == ""
    addresses = engine._rpc("sync_addresses")
    policy = sharded_policy(name, ranks, **changes)
    sampling = Sampling(2, 16, 0.8, (), 5)
    rollouts = LocalRollouts(
        engine,
        ranks,
        PromptsInOrder(Stream()),  # type: ignore[arg-type]
        sampling,
        partial(full_weights, policy),
        torch.float32,
        tensor_parallel=2,
        compare_every=1,
    )
    free = 0
    for version in range(1, 101):
        weights = tiny.random_weights(name, version, **changes)
        set_weights(policy, weights)
        free = tiny.in_flight(engine, free, Sampling(1, 80, 0.8, (), 3), {})
        rollouts.sync(version)  # compares the checksums of both shards, added up, with the trainer's
    (held,) = tiny.parameters(engine)
    tiny.assert_same_bits(held, tiny.laid_out(weights, key_heads, ranks.rank, 2), torch.float32)
    assert engine._rpc("sync_addresses") == addresses
    tiny.rest_of(engine)
    rollouts.begin_step(100)
    groups = rollouts.take(4)
    assert len(groups) == 2
    assert_trainer_agrees(name, weights, groups, **changes)
    rollouts.close()
    dist.barrier()  # the engine has left the trainer's groups alone
    ranks.disconnect()


def everyones(groups: list[Group], ranks: Ranks) -> list[Group]:
    return ranks.gather(groups, [Sample, Prompt, Response])


def trainer(path: str, name: str, num_syncs: int, key: str, urls: list[str], **changes: Any) -> None:
    """A rank that trains; the first one speaks to the servers."""
    config = Config(
        model=ModelConfig(path=path),
        data=DataConfig(prompts_per_step=4, max_prompt_tokens=64),
        rollout=RolloutConfig(
            engine="vllm", servers=tuple(urls), max_staleness=2, group_size=2, max_response_tokens=48, max_sequences=16
        ),
        sync=SyncConfig(compare_every=1),
    )
    ranks = Ranks.connect(CPU, ParallelConfig(timeout_s=300))
    policy = sharded_policy(name, ranks, **changes)
    sampling = Sampling(2, 48, 0.8, tuple(range(12)), 5)
    os.environ["VLLM_API_KEY"] = key
    wire = manifest(policy.model.named_parameters(), torch.float32)
    prompts = PromptsInOrder(Stream())  # type: ignore[arg-type]
    weights_of = partial(full_weights, policy)
    rollouts = start_servers(config, ranks, prompts, sampling, wire, weights_of, torch.float32)
    pool = rollouts.pool if ranks.is_first else None
    try:
        if pool is not None:
            assert pool.wait(lambda: len(pool.present) == len(urls), 60), "the servers did not come"
        num_in_flight, num_mixed = 0, 0
        for version in range(num_syncs):
            weights = tiny.random_weights(name, version, **changes)
            set_weights(policy, weights)
            rollouts.begin_step(version)
            if pool is not None:
                num_in_flight += pool.num_drawing > 0
            rollouts.sync(version)  # every server's checksums are compared with the trainer's
            num_mixed += sum(bool(s.response.version_changes) for g in everyones(rollouts.take(4), ranks) for s in g)
        assert num_mixed > num_syncs, num_mixed
        assert pool is None or num_in_flight > 0.8 * num_syncs, num_in_flight
        groups = everyones(rollouts.generate(tiny.prompts(4, first=10**6), sampling), ranks)
        assert {s.response.policy_version for g in groups for s in g} == {num_syncs - 1}
        assert_trainer_agrees(name, weights, groups, **changes)
        print(f"{num_syncs} syncs, {num_in_flight} with requests in flight, {num_mixed} responses over several weights")
    finally:
        rollouts.close()
    ranks.disconnect()


def follow_the_example(path: str) -> None:
    """The first example of the package's documentation, with a model and a prompt filled in."""
    import vllm

    import fastgrpo.rollout.weight_sync as documented

    block = (documented.__doc__ or "").split("::\n")[1].strip("\n").splitlines()
    lines = [line.strip() for line in takewhile(lambda line: line.startswith("    "), block)]
    assert any("vllm.LLM(...," in line for line in lines), lines
    weights = tiny.random_weights("qwen2_tied", 1)
    model = tiny.model_with("qwen2_tied", weights)
    program = "\n".join(lines).replace("vllm.LLM(...,", "vllm.LLM(path, dtype='float32', enforce_eager=True,")
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
    names: dict[str, Any] = {"vllm": vllm, "model": model, "path": path, "os": os}
    exec(program, names)

    llm = names["llm"]
    settings = vllm.SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True, detokenize=False)
    prompts = tiny.prompts(4)
    outputs = llm.generate([{"prompt_token_ids": p.prompt_ids.tolist()} for p in prompts], settings)
    for prompt, output in zip(prompts, outputs, strict=True):
        ids = prompt.prompt_ids.tolist()
        for token in output.outputs[0].token_ids:
            assert int(model(torch.tensor([ids])).logits[0, -1].argmax()) == token
            ids.append(token)
