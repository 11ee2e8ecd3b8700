"""Several trainer ranks and a server: what each gets, keeps, saves and goes on with."""

from tests.launched import run_ranks

CODE = """
from tests.rollout.servers.test_several_ranks import check
check()
"""
GROUP, PER_STEP = 2, 4


def check() -> None:
    from contextlib import ExitStack
    from types import SimpleNamespace

    import numpy as np
    import torch
    from torch import nn

    from fastgrpo.codec import decode, encode
    from fastgrpo.config import Config, DataConfig, DeadlineConfig, ParallelConfig, RolloutConfig
    from fastgrpo.ranks import Ranks
    from fastgrpo.rollout.prompts_in_order import PromptsInOrder
    from fastgrpo.rollout.servers import start
    from fastgrpo.rollout.weight_sync import manifest
    from fastgrpo.types import Prompt, Response, Sampling
    from tests.rollout.servers.accounts import NEEDED
    from tests.rollout.servers.fake_server import GENERATE, RECEIVE, FakeServer, drawn_of
    from tests.rollout.servers.replica import replica_of
    from tests.rollout.servers.until import until

    def model(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Linear(4, 2)

    def at(position: int) -> Prompt:
        return Prompt(row=0, text="", answer="", prompt_ids=np.full(3, position, np.int32), position=position)

    ranks = Ranks.connect(torch.device("cpu"), ParallelConfig(timeout_s=60))
    start.needed_of = lambda config, dtype: NEEDED
    stream = SimpleNamespace(prompts_at=lambda first, count: [at(first + n) for n in range(count)])
    told: list[tuple[int, int]] = []
    judging = SimpleNamespace(
        begin=lambda request, response: told.append((request.prompt.position, request.index)),
        forget=lambda positions, sampling: told.append(tuple(positions)),
    )
    weights = [(name, p.detach()) for name, p in model(1).named_parameters()]

    def rollouts_of(urls: list[str], staleness: int, deadlines: DeadlineConfig):
        settings = RolloutConfig(engine="vllm", servers=tuple(urls), max_staleness=staleness, group_size=GROUP)
        config = Config(data=DataConfig(prompts_per_step=PER_STEP), rollout=settings, deadline=deadlines)
        prompts, sampling = PromptsInOrder(stream), Sampling(GROUP, 4)
        wire = manifest(weights, torch.float32)
        found = start.start_servers(config, ranks, prompts, sampling, wire, lambda: iter(weights), torch.float32)
        found.judging = judging
        return found

    def positions(groups) -> list[int]:
        return [group[0].prompt.position for group in groups]

    with ExitStack() as stack:
        servers = []
        if ranks.is_first:
            servers = [stack.enter_context(FakeServer(replicas=(replica_of(model(2)),))) for _ in range(2)]
            for server in servers:
                server.drawn = drawn_of([5, 6])
        urls = ranks.from_first([server.url for server in servers])

        # A step takes every group once, each where it is judged; a server that dies with it costs none.
        rollouts = rollouts_of(urls, 2, DeadlineConfig(stall_s=30))
        if ranks.is_first:
            until(lambda: len(rollouts.pool.present) == 2)
        rollouts.sync(0)
        if ranks.is_first:
            servers[0].hold(GENERATE)
        rollouts.begin_step(0)
        if ranks.is_first:
            until(lambda: bool(servers[0].of(GENERATE)))
            servers[0].die()
        groups = rollouts.take(PER_STEP)
        assert all(p % ranks.count == ranks.rank for p in positions(groups))
        assert all(s.response.response_ids.tolist() == [5, 6] for group in groups for s in group)
        everyone = ranks.gather(positions(groups))
        assert len(everyone) == len(set(everyone)) == PER_STEP
        assert set(told) >= {(p, k) for p in positions(groups) for k in range(GROUP)}

        # Beside it, prompts that are judged where their groups are, each once.
        held_out = [at(100 + n) for n in range(5)]
        drawn = rollouts.generate(held_out, Sampling(1, 4, 0.0), judging)
        assert sorted(ranks.gather(positions(drawn))) == [100, 101, 102, 103, 104]
        assert ranks.rank == 0 or not rollouts._home._others

        # What is under way is saved by the first rank, and another run goes on with it.
        if ranks.is_first:
            until(lambda: rollouts.pool.num_drawing == 0 and not rollouts.pool.waiting)
        state = rollouts.state()
        under_way = {p: responses for p, _, _, responses in state["under_way"]}
        state = ranks.from_first(decode(encode(state), [Response]), [Response])
        assert ranks.rank or len(under_way) == 2 * PER_STEP
        assert ranks.rank or all(r.response_ids.tolist() == [5, 6] for one in under_way.values() for r in one.values())
        rollouts.close()

        rollouts = rollouts_of(urls[1:], 2, DeadlineConfig(stall_s=30))
        if ranks.is_first:
            until(lambda: len(rollouts.pool.present) == 1)
            num_drawn = len(servers[1].of(GENERATE))
        rollouts.sync(1)
        rollouts.load_state(state)
        rollouts.begin_step(1)
        taken = ranks.gather(positions(rollouts.take(PER_STEP)))
        assert set(taken) <= {p for p, *_ in state["under_way"]} and not set(taken) & set(everyone)
        rollouts.close()

        # Without staleness what no step took is put back, and drawn anew.
        told.clear()
        rollouts = rollouts_of(urls[1:], 0, DeadlineConfig(stall_s=30))
        rollouts.config = rollouts.config.__class__(
            **{
                **vars(rollouts.config),
                "rollout": RolloutConfig(engine="vllm", servers=tuple(urls[1:]), group_size=GROUP, oversample=2.0),
            }
        )
        if ranks.is_first:
            until(lambda: len(rollouts.pool.present) == 1)
        rollouts.sync(0)
        rollouts.begin_step(0)
        first = ranks.gather(positions(rollouts.take(PER_STEP)))
        rollouts.release_memory()
        assert ranks.rank == 0 or not rollouts._home._kept
        put_back = ranks.from_first(sorted(rollouts.prompts.put_back))
        assert len(put_back) == PER_STEP and not set(put_back) & set(first)
        rollouts.sync(1)
        rollouts.begin_step(1)
        assert set(put_back) == set(ranks.gather(positions(rollouts.take(PER_STEP))))
        assert not ranks.is_first or (len(servers[1].of(RECEIVE)) >= 4 and len(servers[1].of(GENERATE)) > num_drawn)
        rollouts.close()
    ranks.disconnect()


def test_ranks_draw_keep_save_and_put_back_their_own_groups():
    run_ranks(CODE, 3)
