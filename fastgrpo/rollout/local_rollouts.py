"""Rollouts by an engine inside every trainer rank: it samples while nobody trains, and trains while nobody samples."""

from collections.abc import Callable, Iterator, Sequence
from math import ceil
from typing import Any

import torch
from torch import Tensor

from fastgrpo.algorithm.judging import Judging
from fastgrpo.config import Config
from fastgrpo.ranks import Ranks, share_of
from fastgrpo.rollout.compare_weights import added, require_equal, with_checksums
from fastgrpo.rollout.engine_protocol import RolloutEngine
from fastgrpo.rollout.generate import OnFinished, generate
from fastgrpo.rollout.prompts_in_order import PromptsInOrder
from fastgrpo.types import Group, Prompt, Request, Response, Sampling


class LocalRollouts:
    """``tensor_parallel`` neighbouring ranks share an engine and step it together.

    ``compare_every``: syncs between comparisons of all weights, the first is always compared; 0: only the first.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        ranks: Ranks,
        prompts: PromptsInOrder,
        sampling: Sampling,
        weights: Callable[[], Iterator[tuple[str, Tensor]]],
        dtype: torch.dtype,
        *,
        tensor_parallel: int = 1,
        oversample: float = 1.0,
        compare_every: int = 50,
    ) -> None:
        self.engine, self.ranks, self.prompts, self.sampling = engine, ranks, prompts, sampling
        self.weights, self.dtype = weights, dtype
        self.oversample, self.compare_every = oversample, compare_every
        self.engine_index, self.shard = divmod(ranks.rank, tensor_parallel)
        self.num_shards, self.num_engines = tensor_parallel, ranks.count // tensor_parallel
        self.num_syncs, self.just_compared = 0, False
        self.counts: dict[str, int] = {}
        self.judging: Judging | None = None

    def set_config(self, config: Config, sampling: Sampling) -> None:
        self.sampling = sampling

    def begin_step(self, step: int) -> None:
        self.counts = dict.fromkeys(("prompts_started", "prompts_put_back"), 0)

    def take(self, num_groups: int) -> list[Group]:
        """This rank's part of the next groups. All ranks take part; together they have ``num_groups``."""
        again = set(self.prompts.put_back)
        prompts = self.prompts.take(max(ceil(num_groups * self.oversample), min(len(again), num_groups)))
        # Every engine has its part of what is needed, and its part of what is started beyond that.
        share = [*self._share_of(prompts[:num_groups]), *self._share_of(prompts[num_groups:])]
        num_needed = len(self._share_of(prompts[:num_groups]))
        on_finished = self._on_finished(share, self.judging)
        groups = generate(self.engine, share, self.sampling, num_needed, again, on_finished)
        unfinished = {p.position for p in share} - {group[0].prompt.position for group in groups}
        if self.judging is not None:
            self.judging.forget(unfinished, self.sampling)
        put_back = set(self.ranks.gather(sorted(unfinished))) if self.oversample > 1 else set()
        self.prompts.give_back(sorted(put_back))
        self.counts["prompts_started"] += len(prompts)
        self.counts["prompts_put_back"] += len(put_back)
        return self._part_of(groups, share)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, judging: Judging | None = None) -> list[Group]:
        """This rank's part of the groups of these prompts, beside the training's."""
        share = self._share_of(prompts)
        groups = generate(self.engine, share, sampling, on_finished=self._on_finished(share, judging))
        return self._part_of(groups, share)

    def release_memory(self) -> None:
        self.engine.release_memory()

    def drain(self) -> None:
        """Does nothing: nothing is drawn while this rank trains."""

    def sync(self, policy_version: int) -> None:
        """Writes the trainer's weights into the engine. Raises WeightMismatch if they do not arrive."""
        self.just_compared = self._must_compare()
        if self.just_compared:
            ours: dict[str, int] = {}
            self.engine.write_weights(with_checksums(self.weights(), self.dtype, ours), policy_version)
            self._require_equal(ours)
        else:
            self.engine.write_weights(self.weights(), policy_version)
        self.num_syncs += 1

    def compare(self) -> None:
        """Raises WeightMismatch if the engine does not hold the trainer's weights."""
        ours: dict[str, int] = {}
        for _ in with_checksums(self.weights(), self.dtype, ours):
            pass
        self._require_equal(ours)
        self.just_compared = True

    def metrics(self) -> dict[str, float]:
        return dict(self.counts)

    def state(self) -> dict[str, Any]:
        return self.prompts.state()

    def load_state(self, state: dict[str, Any]) -> None:
        self.prompts.load_state(state)

    def close(self) -> None:
        self.engine.close()

    def _must_compare(self) -> bool:
        return self.num_syncs == 0 or (self.compare_every > 0 and self.num_syncs % self.compare_every == 0)

    def _require_equal(self, ours: dict[str, int]) -> None:
        shards = self.ranks.gather([self.engine.checksums()])
        mine = shards[self.engine_index * self.num_shards : (self.engine_index + 1) * self.num_shards]
        if theirs := added(mine):  # nothing to compare where vLLM converts weights by its own reload
            require_equal(ours, theirs, f"the engine of rank {self.ranks.rank}")

    def _share_of(self, items: Sequence[Any]) -> Sequence[Any]:
        return share_of(items, self.engine_index, self.num_engines)

    def _positions(self, share: Sequence[Prompt]) -> set[int]:
        """Of the prompts whose groups this rank gets, of those that its engine draws for all its ranks."""
        return {p.position for p in share_of(share, self.shard, self.num_shards)}

    def _part_of(self, groups: list[Group], share: Sequence[Prompt]) -> list[Group]:
        mine = self._positions(share)
        return [group for group in groups if group[0].prompt.position in mine]

    def _on_finished(self, share: Sequence[Prompt], judging: Judging | None) -> OnFinished | None:
        if judging is None:
            return None
        mine, begin = self._positions(share), judging.begin

        def on_finished(request: Request, response: Response) -> None:
            if request.prompt.position in mine:
                begin(request, response)

        return on_finished
