"""The answers of a run's data, tried on its verifier before the first step."""

from collections.abc import Callable, Sequence
from functools import partial

from fastgrpo.ranks import Ranks, Refused
from fastgrpo.recipe import Recipe
from fastgrpo.rewards import RewardError, VerifierPool
from fastgrpo.rewards.golds import Form, GoldReport, first_rows, forms_for, try_golds
from fastgrpo.types import Prompt

TRY_S = 20.0
FEWEST_TRIED = 20
MAX_UNMET_FRAC = 0.5


def check_golds(
    recipe: Recipe,
    pool: VerifierPool,
    data: dict[str, list[Prompt]],
    trained_on: set[str],
    ranks: Ranks,
    say: Callable[[str], None],
) -> None:
    """Tries each answer of ``data``, by source, against itself as the verifier wants it, for about ``TRY_S``.

    Says how many rows have one that their verifier rejects, or that no plainer spelling meets. Rows stay, since the
    order of a run is a function of its file and its seed. Raises Refused where half of many that are trained on are
    rejected: then it is the data, or the verifier, that is another than was meant; and where the verifier fails.
    """
    if not (forms := forms_for(recipe.reward, recipe.function, pool)):
        return
    for source, prompts in data.items():
        row_of = first_rows((prompt.answer, prompt.row) for prompt in prompts)
        share = ranks.share_of(list(row_of))
        tried = ranks.together(partial(_tried, pool, share, TRY_S / len(data), forms, recipe.reward, source))
        report = _joined(ranks.gather([tried], [GoldReport]))
        unmet = report.unmet_words(source, recipe.reward, row_of)
        is_other = report.num_tried >= FEWEST_TRIED and len(report.unmet) >= MAX_UNMET_FRAC * report.num_tried
        if is_other and source in trained_on:
            raise Refused(f"{unmet}. No response could be right: mend the answers, or take a verifier that reads them")
        for words in filter(None, (unmet, report.dressed_words(source, row_of))):
            say(f"note: {words}")


def _tried(
    pool: VerifierPool, golds: Sequence[str], seconds: float, forms: Sequence[Form], reward: str, source: str
) -> GoldReport:
    try:
        return try_golds(pool, golds, seconds, forms)
    except RewardError as error:
        raise ValueError(f"{reward} fails on an answer of {source}: {error}") from error


def _joined(reports: Sequence[GoldReport]) -> GoldReport:
    """What all ranks found."""
    dressed = {gold: plain for report in reports for gold, plain in report.dressed.items()}
    return GoldReport(sum(r.num_tried for r in reports), [gold for r in reports for gold in r.unmet], dressed)
