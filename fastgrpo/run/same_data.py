"""Whether all ranks of a run read the same prompts, and whether a run goes on with those that it began with."""

from collections.abc import Mapping
from typing import Any

from fastgrpo.data import identity_of, other_than
from fastgrpo.ranks import Ranks
from fastgrpo.run.inputs import Inputs

DataFacts = dict[str, Any]
"""The identity of a run's prompts by what they are for; in run.json."""


def data_of(inputs: Inputs, ranks: Ranks) -> DataFacts:
    """What every rank reads. Raises Refused if one reads other prompts than the first: a file that is not the same on
    every node, or a chat template with the time in it. All ranks take part."""
    of_ranks = ranks.gather([_facts(inputs)])

    def require_same() -> None:
        if differing := other_data(of_ranks[0], of_ranks[ranks.rank]):
            raise ValueError(
                f"rank {ranks.rank} reads other data than the first rank ({differing}, by the first rank's count): "
                f"give every node the same files and the same tokenizer"
            )

    ranks.together(require_same)
    return of_ranks[0]


def other_data(there: Mapping[str, Any], now: DataFacts) -> str:
    """How the prompts of a run differ from those that there are now, in words; empty if they do not."""
    found = {name: other_than(there.get(name), now[name]) for name in now}
    return "; ".join(f"{name}: {differing}" for name, differing in found.items() if differing)


def _facts(inputs: Inputs) -> DataFacts:
    identities = {id(prompts): identity_of(prompts) for prompts in inputs.train}  # phases may share their prompts
    phases = {f"train, phase {n}" if n > 1 else "train": identities[id(p)] for n, p in enumerate(inputs.train, 1)}
    return phases | {"held_out": identity_of(inputs.held_out)}
