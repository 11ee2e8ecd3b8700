"""Generated (answer, equivalent form, different form) triples by category, and how each verifier judges them.

``python -m tests.rewards.triples`` prints the table of docs/verifiers.md.
"""

import argparse
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fastgrpo.rewards import VerifierPool, self_test_of
from tests.rewards import demanded_forms
from tests.rewards.answers import GENERATORS

SEED = 5
TIMEOUT_S = 5.0
MEMORY_LIMIT_GIB = 2.0


@dataclass(frozen=True)
class Triple:
    category: str
    answer: str
    equivalent: str
    different: str


def triples(number: int, seed: int = SEED) -> list[Triple]:
    """As many of each category as of every other, give or take one; the first ones are the same for every number."""
    rng = random.Random(seed)
    found = []
    for i in range(number):
        category, generate = list(GENERATORS.items())[i % len(GENERATORS)]
        forms = generate(rng)
        equivalent = rng.choice([form for form in forms.equivalent if form != forms.answer])
        found.append(Triple(category, forms.answer, equivalent, rng.choice(forms.different)))
    return found


@dataclass
class Tally:
    """Of one verifier in one category."""

    number: int = 0
    accepted_equivalent: int = 0
    accepted_different: int = 0

    @property
    def recall(self) -> float:
        return self.accepted_equivalent / self.number

    @property
    def precision(self) -> float | None:
        """None where nothing was accepted."""
        accepted = self.accepted_equivalent + self.accepted_different
        return self.accepted_equivalent / accepted if accepted else None


Tallies = dict[str, dict[str, Tally]]  # by verifier, by category


def judge(cases: Sequence[Triple], workers: int, names: Iterable[str] = demanded_forms.RESPONSES) -> Tallies:
    """Each of the named verifiers on every triple, each form as a response in the form that the verifier demands."""
    found: Tallies = {}
    for name in names:
        respond = demanded_forms.RESPONSES[name]
        verifier = demanded_forms.verifier(name)
        items = [(respond(form), case.answer) for case in cases for form in (case.equivalent, case.different)]
        with VerifierPool(
            f"fastgrpo.rewards:{name}", workers, TIMEOUT_S, MEMORY_LIMIT_GIB, self_test_of(verifier)
        ) as pool:
            verdicts = [verdict.correct for verdict in pool.score(items)]
        tallies = {category: Tally() for category in GENERATORS}
        for case, equivalent, different in zip(cases, verdicts[::2], verdicts[1::2], strict=True):
            tally = tallies[case.category]
            tally.number += 1
            tally.accepted_equivalent += equivalent
            tally.accepted_different += different
        found[name] = tallies | {"all": total(list(tallies.values()))}
    return found


def total(tallies: Sequence[Tally]) -> Tally:
    fields = ("number", "accepted_equivalent", "accepted_different")
    return Tally(*(sum(getattr(tally, field) for tally in tallies) for field in fields))


def cell(tally: Tally) -> str:
    """Recall in percent, and the precision after a slash where it is not 100 %."""
    recall = f"{100 * tally.recall:.0f}"
    if tally.precision is None or tally.accepted_different == 0:
        return recall
    return f"{recall} / {100 * tally.precision:.1f}"


def table(tallies: Tallies) -> str:
    """Markdown: a row a category, a column a verifier."""
    rows = [["category", *(f"`{name}`" for name in tallies)], ["---"] * (len(tallies) + 1)]
    rows += [[category, *(cell(of[category]) for of in tallies.values())] for category in (*GENERATORS, "all")]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=10_000, help="of triples")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    print(table(judge(triples(arguments.number), arguments.workers)), end="")


if __name__ == "__main__":
    main()
