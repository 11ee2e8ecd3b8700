"""Builds a page: one html text that contains everything and loads nothing."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from fastgrpo.evaluation.page import figures
from fastgrpo.evaluation.page.transcripts import Transcripts, choose
from fastgrpo.evaluation.records import Evaluation
from fastgrpo.evaluation.same_protocol import same_protocol
from fastgrpo.evaluation.statistics import Difference, Estimate
from fastgrpo.evaluation.summary import Summary
from fastgrpo.evaluation.tables import (
    AVERAGE,
    INTERVAL,
    Table,
    accuracy_table,
    behaviour_table,
    behaviours_explained,
    glossary,
    pass_table,
    percent,
    text_table,
    with_interval,
)
from fastgrpo.report.rollouts import embed
from fastgrpo.report.words import amount, counted


@dataclass(frozen=True)
class Chart:
    """A figure with its title; `about` stands below it, and `size` is a class of page.css."""

    name: str
    title: str
    figure: go.Figure
    about: str = ""
    size: Literal["", "wide", "half"] = ""


@dataclass(frozen=True)
class Section:
    title: str
    hint: str = ""
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()


def page(evaluation: Evaluation, summary: Summary) -> str:
    """The page of one evaluation."""
    transcripts = choose(evaluation)
    responses = [judged.num_tokens for part in evaluation.benchmarks for judged in part.judged]
    return _render(
        title=summary.name,
        subtitle=[f"{name}: {summary.about[key]}" for name, key in _SUBTITLE.items() if summary.about.get(key)],
        facts=_facts(summary, responses),
        notes=[str(note) for note in summary.about.get("notes", [])],
        sections=[_accuracy(summary), *_curves(summary), _lengths(evaluation), *_responses(summary)],
        transcripts=transcripts,
    )


def comparison_page(
    title: str,
    models: Sequence[str],
    accuracies: Mapping[str, Mapping[str, Estimate]],  # run -> benchmark -> its accuracy
    differences: Mapping[str, Mapping[str, Difference]],  # run -> benchmark -> its difference to the first run
    tables: Sequence[Table],  # accuracies, then each other run's differences
    warnings: Sequence[str],
    explained: str,
) -> str:
    """The page of a comparison of runs with the first of them."""
    first = next(iter(accuracies))
    drawn = Chart("accuracies", "Accuracy by benchmark", figures.accuracies(accuracies), size="wide")
    found = Chart("differences", f"Difference to {first}", figures.differences(differences), size="wide")
    sections = [
        Section("Differences", explained, [found], tables[1:]),
        Section("Accuracy", f"Bars are the {INTERVAL}.", [drawn], tables[:1]),
    ]
    return _render(title=title, subtitle=models, facts=[], notes=warnings, sections=sections, transcripts=None)


_SUBTITLE = {"model": "model", "suite": "suite", "judged by": "rule", "then by": "verifier_model", "seed": "seed"}


def _facts(summary: Summary, responses: Sequence[int]) -> list[tuple[str, str, str]]:  # label, value, detail
    benchmarks = summary.benchmarks
    best = summary.average or benchmarks[0].accuracies
    over = f"{len(benchmarks)} benchmarks, equal weight" if summary.average else benchmarks[0].name
    truncated = sum(b.text.truncated * b.num_problems * b.samples_per_problem for b in benchmarks) / len(responses)
    problems = sum(b.num_problems for b in benchmarks)
    return [
        ("Average accuracy" if summary.average else "Accuracy", f"{with_interval(best.avg)} %", over),
        ("Responses", f"{len(responses):,}", f"to {counted(problems, 'problem')}"),
        ("Tokens a response", f"{sum(responses) / len(responses):,.0f}", f"{amount(sum(responses))} in all"),
        ("Cut at the limit", f"{percent(truncated)} %", "of the responses"),
    ]


def _accuracy(summary: Summary) -> Section:
    published = same_protocol({b.name: b.protocol for b in summary.benchmarks})
    about = "No published result has the temperature, top-p, token limit, samples and problems of this evaluation."
    if published:
        sources = "; ".join(dict.fromkeys(row.source for row in published))
        judges = "; ".join(dict.fromkeys(row.judged_by for row in published))
        about = (
            f"Published with the same temperature, top-p, token limit, samples and problems: {sources}. "
            f"Judged there by {judges}; here by {_judged_by(summary)}."
        )
    chart = Chart("accuracy", "Accuracy by benchmark", figures.accuracy(summary, published), about, "wide")
    hint = f"Bars are the {INTERVAL}."
    return Section("Accuracy", hint, [chart], [accuracy_table(summary)])


def _judged_by(summary: Summary) -> str:
    judges = [summary.about.get("rule"), summary.about.get("verifier_model")]
    return ", then ".join(str(judge) for judge in judges if judge) or "an unknown rule"


def _curves(summary: Summary) -> list[Section]:
    if all(b.samples_per_problem == 1 for b in summary.benchmarks):
        return []
    drawn = [
        Chart("pass", "pass@k", figures.curves(summary, "pass_at"), "At least one of k responses is right.", "half"),
        Chart("maj", "maj@k", figures.curves(summary, "maj_at"), "The answer that most of k box is right.", "half"),
    ]
    return [Section("Samples", "Expected over all choices of k responses to a problem.", drawn, [pass_table(summary)])]


def _lengths(evaluation: Evaluation) -> Section:
    drawn = [
        Chart(f"lengths-{i}", part.name, figures.lengths(part.judged)) for i, part in enumerate(evaluation.benchmarks)
    ]
    return Section("Response lengths", "Responses by their number of tokens, right and wrong.", drawn)


def _responses(summary: Summary) -> list[Section]:
    sections = [Section("Responses in figures", tables=[text_table(summary)], notes=glossary())]
    if summary.behaviours:
        table = behaviour_table(summary)
        sections.append(Section("Cognitive behaviours", behaviours_explained(summary), tables=[table]))
    return sections


def _render(*, sections: Sequence[Section], transcripts: Transcripts | None, **context: Any) -> str:
    drawn = {chart.name: json.loads(chart.figure.to_json()) for section in sections for chart in section.charts}
    # Only these texts and the style are trusted; everything else is escaped. The report's script has theme(), element()
    # and visible(), which this page's script uses.
    scripts = [Markup(text) for text in (get_plotlyjs(), _report("page.js"), _resource("page.js"))]
    data: Mapping[str, Any] = {
        "charts": drawn,
        "rollouts": [],
        "problems": transcripts.problems if transcripts else [],
        "transcripts": transcripts.shown if transcripts else [],
    }
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(_resource("page.html")).render(
        **context,
        sections=sections,
        average=AVERAGE,
        transcripts=transcripts,
        style=Markup(_report("page.css") + _resource("page.css")),
        scripts=scripts,
        script_hashes=" ".join(map(_hash, scripts)),
        data=Markup(embed(data)),
    )


def _resource(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _report(name: str) -> str:
    return resources.files("fastgrpo.report").joinpath(name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    """A script's name in a content security policy: the page runs these scripts and no script in a response."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
