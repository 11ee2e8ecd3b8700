"""The answers of a run's data, tried on its verifier before the first step."""

from collections.abc import Callable, Sequence

from fastgrpo.ranks import Ranks, Refused
from fastgrpo.recipe import Recipe
from fastgrpo.rewards import VerifierPool
from fastgrpo.rewards.golds import GoldReport, can_try_golds, first_rows, try_golds
from fastgrpo.types import Prompt

TRY_S = 20.0
MAX_UNMET_FRAC = 0.1


def check_golds(
    recipe: Recipe, pool: VerifierPool, data: dict[str, list[Prompt]], ranks: Ranks, say: Callable[[str], None]
) -> None:
    """Tries each answer of ``data``, by source, against itself in a box, for ``TRY_S`` at most.

    Says how many rows have one that their verifier rejects, or that no plainer spelling meets. Rows stay, since the
    order of a run is a function of its file and its seed. Raises Refused where over a tenth are rejected: then it is
    the data, or the verifier, that is another than was meant.
    """
    if not can_try_golds(recipe.reward, recipe.function, pool):
        return
    for source, prompts in data.items():
        row_of = first_rows((prompt.answer, prompt.row) for prompt in prompts)
        share = ranks.share_of(list(row_of))
        report = _joined(ranks.gather([try_golds(pool, share, TRY_S / len(data))]))
        unmet = report.unmet_words(source, recipe.reward, row_of)
        if len(report.unmet) > MAX_UNMET_FRAC * report.num_tried:
            raise Refused(f"{unmet}. No response could be right: mend the answers, or take a verifier that reads them")
        for words in filter(None, (unmet, report.dressed_words(source, row_of))):
            say(f"note: {words}")


def _joined(reports: Sequence[GoldReport]) -> GoldReport:
    """What all ranks found."""
    dressed = {gold: plain for report in reports for gold, plain in report.dressed.items()}
    return GoldReport(sum(r.num_tried for r in reports), [gold for r in reports for gold in r.unmet], dressed)
