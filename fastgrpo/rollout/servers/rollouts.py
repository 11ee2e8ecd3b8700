"""Rollouts by servers, while the trainer trains or before it does."""

import logging
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from math import ceil
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from fastgrpo.algorithm.judging import Judging
from fastgrpo.config import Config
from fastgrpo.ranks import Ranks
from fastgrpo.rollout.compare_weights import WeightMismatch, require_equal, with_checksums
from fastgrpo.rollout.generate import requests_of
from fastgrpo.rollout.prompts_in_order import PromptsInOrder
from fastgrpo.rollout.servers.home import Home, home_of
from fastgrpo.rollout.servers.pool import ServerFailure, ServerPool
from fastgrpo.rollout.servers.staleness import StalenessQueue, Started
from fastgrpo.rollout.servers.watch import ServerWatch
from fastgrpo.rollout.servers.weight_sender import WeightSender, in_buckets
from fastgrpo.types import Group, Prompt, Request, Response, ResponseElsewhere, Sample, Sampling

log = logging.getLogger(__name__)

T = TypeVar("T")

BEAT_S = 5.0
"""The first rank, which alone speaks with the servers, gives the others a sign so often: no collective waits longer."""

AnyResponse = Response | ResponseElsewhere
Weights = Callable[[], Iterator[tuple[str, Tensor]]]


class ServerRollouts:
    """All trainer ranks call every method together; the pool is the first rank's. It decides what is drawn and taken;
    a group's responses stay with the rank that judges it (`fastgrpo.rollout.servers.home`).

    The queue says which groups a step takes. With ``max_staleness`` 0 servers wait while the trainer trains; with 1
    they draw the next step's meanwhile, and are done before weights change; from 2 on weights change under what is
    being drawn. A server that was lost, or joins late, gets the current weights when it is there.
    """

    def __init__(
        self,
        pool: ServerPool | None,
        sender: WeightSender | None,
        watch: ServerWatch | None,
        home: Home | None,
        config: Config,
        ranks: Ranks,
        prompts: PromptsInOrder,
        sampling: Sampling,
        weights: Weights,
        dtype: torch.dtype,
    ) -> None:
        self._pool, self._sender, self._watch, self._home = pool, sender, watch, home
        self.config, self.ranks, self.prompts, self.sampling = config, ranks, prompts, sampling
        self.weights, self.dtype = weights, dtype
        settings = config.rollout
        self.queue = StalenessQueue(config.data.prompts_per_step, settings.max_staleness, settings.group_size)
        self.version = 0
        self.num_syncs, self.just_compared = 0, False
        self._next_id = 0
        self._training: dict[int, tuple[int, int]] = {}  # request id -> position, index in the group
        self._other: dict[int, AnyResponse] = {}  # responses to requests that no step asked for
        self._counts: dict[str, float] = {}
        self._judging: Judging | None = None
        if home is not None:
            home.training = sampling

    @property
    def pool(self) -> ServerPool:
        assert self._pool is not None, "the pool is the first rank's"
        return self._pool

    @property
    def judging(self) -> Judging | None:
        return self._judging

    @judging.setter
    def judging(self, judging: Judging | None) -> None:
        self._judging = judging
        if self._home is not None:
            self._home.judging = judging

    def set_config(self, config: Config, sampling: Sampling) -> None:
        """Goes on with other settings. Nothing is under way: where steps overlap, settings do not change in the run."""
        assert not self.queue.started
        settings = config.rollout
        self.config, self.sampling = config, sampling
        if self._home is not None:
            self._home.training = sampling
        self.queue = StalenessQueue(config.data.prompts_per_step, settings.max_staleness, settings.group_size)

    def begin_step(self, step: int) -> None:
        self.ranks.barrier()  # all are in the phase whose prompts they may be asked for
        self.queue.step = step
        self._counts = dict.fromkeys(("prompts_started", "prompts_put_back"), 0.0)
        self._lead(lambda: self._start(self.config.data.prompts_per_step))

    def take(self, num_groups: int) -> list[Group]:
        mine: dict[int, Group] = {}

        def ready() -> list[int] | None:
            groups = self._next_groups(num_groups)
            mine.update({group[0].prompt.position: group for group in groups or ()})
            return None if groups is None else [group[0].prompt.position for group in groups]

        positions = self._of_this_rank(self._when_ready(ready))
        if self._home is None:
            return [mine[position] for position in positions]
        return [self._kept(self._home, self.prompts.at(position), self.sampling) for position in positions]

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, judging: Judging | None = None) -> list[Group]:
        ids: list[int] = []
        if self._home is not None:
            self._home.expect([p for p in prompts if self._is_here(p.position)], sampling, judging)
        self.ranks.barrier()  # then each knows what it may be asked for

        def submit() -> None:
            groups = [requests_of([p], sampling, self._ids(sampling.group_size)) for p in prompts]
            ids.extend(r.id for group in groups for r in group)
            self.pool.submit(groups, first=True, on_finished=None if judging is None else judging.begin)

        self._lead(submit)

        def ready() -> list[int] | None:
            self._collect()
            return [] if all(i in self._other for i in ids) else None

        self._when_ready(ready)
        responses = iter([self._other.pop(i) for i in ids])
        if self._home is None:
            groups = [[Sample(p, next(responses)) for _ in range(sampling.group_size)] for p in prompts]
            return [group for group in groups if self._is_here(group[0].prompt.position)]
        return [self._kept(self._home, p, sampling) for p in prompts if self._is_here(p.position)]

    def release_memory(self) -> None:
        if self.config.rollout.max_staleness == 0:
            self._forget(self._lead(self._put_back))

    def drain(self) -> None:
        if self.config.rollout.max_staleness == 1:
            self._until(lambda: self.pool.num_drawing == 0)

    def sync(self, policy_version: int) -> None:
        self.version = policy_version
        self._sync()
        self.num_syncs += 1

    def compare(self) -> None:
        self._sync(with_checksums=True)

    def metrics(self) -> dict[str, float]:
        return self._lead(self._metrics)

    def state(self) -> dict[str, Any]:
        """What a resumed run must know; on the first rank also what servers have drawn and no step has taken."""
        known = self._lead(self._known)
        kept = {p: self._home.of(p, known[p], self.sampling) for p in self._of_this_rank(known)} if self._home else {}
        responses = {p: found for part in self.ranks.to_first([kept], [Response]) for p, found in part.items()}
        under_way = [
            (p, s.version, s.is_awaited, {**responses[p]} if p in responses else dict(s.responses))
            for p, s in self.queue.started.items()
        ]
        return {**self.prompts.state(), "under_way": under_way}

    def load_state(self, state: dict[str, Any]) -> None:
        self.prompts.load_state(state)
        for position, version, is_awaited, responses in state.get("under_way", []):
            if self._home is not None and self._is_here(position):
                self._home.put(position, responses, self.sampling)
            if self._pool is not None:
                prompt = self.prompts.at(position)
                is_here = self._is_here(position)
                known = {index: r if is_here else r.elsewhere() for index, r in responses.items()}
                self.queue.started[position] = Started(prompt, version, is_awaited, known)
                if missing := set(range(self.sampling.group_size)) - responses.keys():
                    self._submit([self._requests(prompt, missing)])

    def close(self) -> None:
        if self._pool is not None and self._watch is not None:
            self._pool.close()
            self._watch.close()
        if self._home is not None:
            self._home.close()

    # Between the ranks.

    def _lead(self, work: Callable[[], T]) -> T:
        """The result of what the first rank does, on all ranks; if it raises, all do."""
        outcome: tuple[str, Any] = "", None
        if self.ranks.is_first:
            try:
                outcome = "", work()
            except (ServerFailure, WeightMismatch) as failure:
                outcome = type(failure).__name__, str(failure)
        raised, result = self.ranks.from_first(outcome)
        for kind in (ServerFailure, WeightMismatch):
            if raised == kind.__name__:
                raise kind(result)
        return cast(T, result)

    def _until(self, is_over: Callable[[], bool]) -> None:
        while not self._lead(lambda: self.pool.wait(is_over, BEAT_S)):
            pass

    def _when_ready(self, attempt: Callable[[], list[int] | None]) -> list[int]:
        """What the attempt gives on the first rank, asked until there is something. Servers that come back meanwhile
        get the weights."""

        def look() -> tuple[str, list[int]]:
            if (found := attempt()) is not None:
                return "ready", found
            if self.pool.unsynced:
                return "sync", []
            self.pool.wait(lambda: bool(self.pool.finished or self.pool.unsynced), BEAT_S)
            return "wait", []

        while (told := self._lead(look))[0] != "ready":
            if told[0] == "sync":
                self._sync(with_checksums=True, only_unsynced=True)
        return told[1]

    def _is_here(self, position: int) -> bool:
        """Whether this rank judges the group at this position."""
        return home_of(position, self.ranks.count) == self.ranks.rank

    def _of_this_rank(self, positions: Iterable[int]) -> list[int]:
        return [position for position in positions if self._is_here(position)]

    def _kept(self, home: Home, prompt: Prompt, sampling: Sampling) -> Group:
        return [Sample(prompt, response) for response in home.take(prompt.position, sampling)]

    def _forget(self, positions: list[int]) -> None:
        """Drops what this rank has of groups that no step takes."""
        if self._home is not None:
            self._home.forget(positions, self.sampling)
        if self.judging is not None:
            self.judging.forget(positions, self.sampling)

    # On the first rank.

    def _ids(self, count: int) -> int:
        """The first of so many new ids."""
        self._next_id += count
        return self._next_id - count

    def _requests(self, prompt: Prompt, indices: Container[int] | None = None) -> list[Request]:
        """A step's requests of a prompt: all, or those for the samples of these indices."""
        every = requests_of([prompt], self.sampling, self._ids(self.sampling.group_size))
        requests = [r for r in every if indices is None or r.index in indices]
        self._training.update({r.id: (prompt.position, r.index) for r in requests})
        return requests

    def _start(self, num_missing: int) -> None:
        wanted = ceil(num_missing * self.config.rollout.oversample)
        count = self.queue.num_to_start(wanted)
        again = set(self.prompts.put_back)
        prompts = self.prompts.take(count)
        for prompt in prompts:
            self.queue.start(prompt, again=prompt.position in again)
        self._submit([self._requests(p) for p in prompts])
        self._counts["prompts_started"] += count

    def _submit(self, groups: list[list[Request]]) -> None:
        self.pool.submit(groups, on_finished=None if self.judging is None else self.judging.begin)

    def _next_groups(self, num_groups: int) -> list[Group] | None:
        if self.queue.num_to_start(num_groups) > 0 and len(self.queue.started) < num_groups:
            self._start(num_groups)  # a later round of the step
        self._collect()
        return self.queue.take(num_groups)

    def _collect(self) -> None:
        for i, response in self.pool.collect().items():
            if i in self._training:
                self.queue.finish(*self._training.pop(i), response)
            else:
                self._other[i] = response

    def _known(self) -> dict[int, list[int]]:
        """The indices of the responses that are finished and that no step has taken, by position."""
        self._collect()
        return {position: sorted(started.responses) for position, started in self.queue.started.items()}

    def _put_back(self) -> list[int]:
        """Puts back what no step took, which would be stale: its prompts are the first of the next step."""
        positions = self.queue.put_back()
        gone = set(positions)
        ids = [i for i, (position, _) in self._training.items() if position in gone]
        self.pool.cancel(ids)
        for i in ids:
            del self._training[i]
        self.prompts.give_back(positions)
        self._counts["prompts_put_back"] = self._counts.get("prompts_put_back", 0.0) + len(positions)
        return positions

    def _metrics(self) -> dict[str, float]:
        pool = self.pool
        return {
            **self._counts,
            "prompts_under_way": len(self.queue.started),
            "engine_busy_s": pool.take_busy_s(),
            "engine_restarts": pool.num_lost,
            "responses_redrawn": pool.num_redrawn,
        }

    # Weights.

    def _sync(self, *, with_checksums: bool = False, only_unsynced: bool = False) -> None:
        """Syncs until all servers that are there hold the trainer's weights.

        ``only_unsynced`` leaves alone those that hold them already, and may be drawing.
        """
        every = self.config.sync.compare_every
        due = with_checksums or self.num_syncs == 0 or (every > 0 and self.num_syncs % every == 0)
        self.just_compared = due
        for _ in range(self.config.rollout.max_engine_restarts + 1):
            if only_unsynced and not self._lead(lambda: bool(self.pool.unsynced)):
                return  # they were lost again, and others draw
            self._until(lambda: bool(self.pool.present))
            if self._sync_once(due, only_unsynced):
                return
        self._lead(self._give_up)

    def _give_up(self) -> None:
        assert self._sender is not None
        reasons = "; ".join(self._sender.complaints) or "servers were lost in each"
        raise ServerFailure(
            f"weights did not reach the servers in {self.config.rollout.max_engine_restarts + 1} attempts, as many as "
            f"--rollout.max_engine_restarts allows: {reasons}"
        )

    def _sync_once(self, compare: bool, only_unsynced: bool) -> bool:
        ours: dict[str, int] = {}
        weights: Iterable[tuple[str, Tensor]] = self.weights()
        if compare and self._sender is not None:
            weights = with_checksums(weights, self.dtype, ours)
        buckets = in_buckets(weights, self.config.sync.bucket_mib * 2**20 // 2)
        if self._sender is not None:
            servers = self.pool.unsynced if only_unsynced else self.pool.present
            self._sender.send(servers, buckets, self.version, with_checksums=compare)
        else:
            for _ in buckets:
                pass
        return self._lead(lambda: self._receive_replies(ours))

    def _receive_replies(self, ours: dict[str, int]) -> bool:
        assert self._sender is not None
        replies = self._sender.replies()
        if replies is None:
            log.warning("fastgrpo: a weight sync failed and is done again: %s", "; ".join(self._sender.complaints))
            return False
        for server, (channel, reply) in replies.items():
            if reply.checksums:
                require_equal(ours, reply.checksums, f"server {server.url}")
            self.pool.synced(server, channel, reply.policy_version)
        return True
