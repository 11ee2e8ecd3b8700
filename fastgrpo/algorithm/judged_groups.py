"""What all ranks learn of the responses that one of them has judged: a row of numbers each. Tokens and texts stay."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any

import numpy as np

from fastgrpo.types import Group, Prompt, ResponseElsewhere, Sample


@dataclass(frozen=True, slots=True)
class JudgedGroups:
    """Groups as arrays, whose N samples stand together group by group."""

    positions: np.ndarray  # [groups] int64, of the prompts
    sizes: np.ndarray  # [groups] int64, samples of each
    num_tokens: np.ndarray  # [N] int64
    num_sampled: np.ndarray  # [N] int64
    truncated: np.ndarray  # [N] bool
    mean_entropies: np.ndarray  # [N] float64, NaN where the sampler did not know it
    num_versions: np.ndarray  # [N] int64, policy versions that sampled each response
    sampled_by: np.ndarray  # [sum(num_versions), 2] int64, (version, tokens)
    correct: np.ndarray  # [N] bool
    scores: np.ndarray  # [N] float64
    graded: np.ndarray  # [N] bool
    teaches: np.ndarray  # [N] bool
    unformatted: np.ndarray  # [N] bool
    boxed: np.ndarray  # [N] bool
    parts: dict[int, dict[str, float]]  # of the samples that have some, by number
    failures: dict[int, str]  # of the samples without a verdict, by number

    @classmethod
    def of(cls, groups: Sequence[Group]) -> "JudgedGroups":
        samples = [sample for group in groups for sample in group]
        responses = [s.response for s in samples]
        versions = [r.sampled_by for r in responses]
        entropies = [np.nan if r.mean_entropy is None else r.mean_entropy for r in responses]
        return cls(
            positions=np.array([group[0].prompt.position for group in groups], dtype=np.int64),
            sizes=np.array([len(group) for group in groups], dtype=np.int64),
            num_tokens=np.array([len(r) for r in responses], dtype=np.int64),
            num_sampled=np.array([r.num_sampled_tokens for r in responses], dtype=np.int64),
            truncated=np.array([r.finish_reason == "length" for r in responses], dtype=bool),
            mean_entropies=np.array(entropies, dtype=np.float64),
            num_versions=np.array([len(v) for v in versions], dtype=np.int64),
            sampled_by=np.array([pair for v in versions for pair in v], dtype=np.int64).reshape(-1, 2),
            correct=np.array([s.correct for s in samples], dtype=bool),
            scores=np.array([s.score for s in samples], dtype=np.float64),
            graded=np.array([s.graded for s in samples], dtype=bool),
            teaches=np.array([s.teaches for s in samples], dtype=bool),
            unformatted=np.array([s.unformatted for s in samples], dtype=bool),
            boxed=np.array([s.boxed for s in samples], dtype=bool),
            parts={n: dict(s.parts) for n, s in enumerate(samples) if s.parts},
            failures={n: s.failure for n, s in enumerate(samples) if s.failure},
        )

    def groups(self, home: int, prompt_at: Callable[[int], Prompt]) -> list[Group]:
        """The groups for a rank that has none of the tokens: ``home`` has them."""
        samples = self._samples(home, prompt_at)
        return [[next(samples) for _ in range(size)] for size in self.sizes.tolist()]

    def _samples(self, home: int, prompt_at: Callable[[int], Prompt]) -> Iterator[Sample]:
        prompts = (
            prompt
            for position, size in zip(self.positions.tolist(), self.sizes.tolist(), strict=True)
            for prompt in repeat(prompt_at(position).without_columns(), size)
        )
        columns: list[Any] = [self.correct, self.scores, self.graded, self.teaches, self.unformatted, self.boxed]
        verdicts = zip(*(column.tolist() for column in columns), strict=True)
        each = zip(prompts, self._responses(), verdicts, strict=True)
        none: dict[str, float] = {}
        for n, (prompt, response, (correct, score, graded, teaches, unformatted, boxed)) in enumerate(each):
            yield Sample(
                prompt,
                response,
                home,
                correct=correct,
                score=score,
                graded=graded,
                teaches=teaches,
                unformatted=unformatted,
                boxed=boxed,
                parts=self.parts.get(n, none),
                failure=self.failures.get(n, ""),
            )

    def _responses(self) -> Iterator[ResponseElsewhere]:
        pairs = iter(map(tuple, self.sampled_by.tolist()))
        columns: list[Any] = [self.num_tokens, self.num_sampled, self.truncated, self.mean_entropies, self.num_versions]
        for tokens, sampled, truncated, entropy, count in zip(*(column.tolist() for column in columns), strict=True):
            yield ResponseElsewhere(
                num_tokens=tokens,
                num_sampled_tokens=sampled,
                finish_reason="length" if truncated else "stop",
                sampled_by=tuple(next(pairs) for _ in range(count)),
                mean_entropy=None if entropy != entropy else entropy,
            )


def all_groups(
    everyone: Sequence[JudgedGroups], mine: Sequence[Group], rank: int, prompt_at: Callable[[int], Prompt]
) -> list[Group]:
    """The groups of all ranks, in the order of their positions; those of this rank have their tokens and texts."""
    at_home = [[replace(sample, home=rank) for sample in group] for group in mine]
    parts = (at_home if home == rank else one.groups(home, prompt_at) for home, one in enumerate(everyone))
    return sorted((group for part in parts for group in part), key=lambda group: group[0].prompt.position)
