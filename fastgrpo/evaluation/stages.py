"""The stages of an evaluation: generate, judge by the rule, judge by models, write the results."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from fastgrpo.evaluation.behaviours import judge_behaviours
from fastgrpo.evaluation.chat_server import ChatServer
from fastgrpo.evaluation.compass import judge_by_model
from fastgrpo.evaluation.folder import EvaluationFolder
from fastgrpo.evaluation.generate import generate, prepare
from fastgrpo.evaluation.plan import Plan, facts_of
from fastgrpo.evaluation.ranks import generate_on_ranks
from fastgrpo.evaluation.records import read_evaluation
from fastgrpo.evaluation.results import write_results
from fastgrpo.evaluation.sampler import read_tokenizer, stop_token_ids
from fastgrpo.evaluation.settings import Settings
from fastgrpo.evaluation.verdicts import judge_by_rule, start_pool, unmet_golds
from fastgrpo.ranks import choose_device
from fastgrpo.ranks.signals import signals_noted, stop_if_noted


def evaluate(settings: Settings, plan: Plan, path: Path) -> None:
    """Draws the responses that are missing, judges those without a verdict, and writes the results.

    Raises ValueError for what the user can mend, before the folder is touched; OSError for a full disk; Interrupted on
    a signal.
    """
    disable_progress_bar()
    needs_none = settings.servers and not settings.verifier_model
    device = choose_device("cpu" if needs_none else settings.device)
    folder, prepared = EvaluationFolder(path), prepare(settings, plan, print)
    facts = facts_of(settings, plan, prepared.identities)
    folder.check(facts, plan, settings.overwrite)
    check_judges(settings, plan, is_new=not folder.about.exists())
    with folder.lock(), signals_noted() as noted:
        check = partial(stop_if_noted, noted)
        folder.check(facts, plan, settings.overwrite)  # another may have begun one since
        folder.begin(facts, plan, settings.overwrite)
        if settings.ranks > 1:
            generate_on_ranks(settings, plan, folder, device, check)
        else:
            generate(settings, plan, folder, prepared, device, check)
        judge_by_rule(settings, plan, folder, check)
        if settings.verifier_model:
            judge_by_model(replace(settings, servers=()), plan, folder, device, check)  # servers have the other model
        if settings.behaviours:
            write_results(read_evaluation(path))  # they are there even if the judging server fails
            judge_behaviours(settings, plan, folder, check)
    write_results(read_evaluation(path))
    print((path / "results.md").read_text(encoding="utf-8"))
    for name in ("results.json", "results.md", "report.html", "generations", "verdicts"):
        print(f"  {path / name}")


def check_judges(settings: Settings, plan: Plan, is_new: bool) -> None:
    """Raises ValueError for a judge that cannot work, now and not after the last response. Of a new evaluation it also
    prints which answers the rule rejects whatever a response says."""
    rule = settings.rule or plan.suite.rule
    with start_pool(replace(settings, verifier_workers=1), rule) as pool:
        for note in unmet_golds(plan, rule, pool) if is_new else ():
            print(f"note: {note}")
    if settings.verifier_model:
        read_tokenizer(settings, settings.verifier_model)
        stop_token_ids(settings.verifier_model, (), settings.trust_remote_code)
    if settings.behaviours:
        ChatServer.of(settings)
