"""Builds a page: one html text that contains everything and loads nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

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
from fastgrpo.pages import Fact, amount, counted, render


@dataclass(frozen=True)
class Chart:
    """A figure with its title; `about` stands below it, and `size` is a class of page.css."""

    name: str
    title: str
    figure: figures.Dots | figures.Histogram | dict[str, Any]  # the last is a curve, which a script draws
    about: str = ""
    size: Literal["", "wide", "half"] = ""
    unit: str = ""

    @property
    def kind(self) -> str:
        return {figures.Dots: "dots", figures.Histogram: "histogram"}.get(type(self.figure), "curves")


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
    drawn = Chart("accuracies", "Accuracy by benchmark", figures.accuracies(accuracies), "", "wide", "percent")
    found = Chart(
        "differences", f"Difference to {first}", figures.differences(differences), "", "wide", "percentage points"
    )
    sections = [
        Section("Differences", explained, [found], tables[1:]),
        Section("Accuracy", f"Bars are the {INTERVAL}.", [drawn], tables[:1]),
    ]
    return _render(title=title, subtitle=models, facts=[], notes=warnings, sections=sections, transcripts=None)


_SUBTITLE = {"model": "model", "suite": "suite", "judged by": "rule", "then by": "verifier_model", "seed": "seed"}


def _facts(summary: Summary, responses: Sequence[int]) -> list[Fact]:
    benchmarks = summary.benchmarks
    best = summary.average or benchmarks[0].accuracies
    over = f"{len(benchmarks)} benchmarks, equal weight" if summary.average else benchmarks[0].name
    truncated = sum(b.text.truncated * b.num_problems * b.samples_per_problem for b in benchmarks) / len(responses)
    problems = sum(b.num_problems for b in benchmarks)
    return [
        Fact(
            label="Average accuracy" if summary.average else "Accuracy",
            value=f"{with_interval(best.avg)} %",
            detail=over,
        ),
        Fact(label="Responses", value=f"{len(responses):,}", detail=f"to {counted(problems, 'problem')}"),
        Fact(
            label="Tokens a response",
            value=f"{sum(responses) / len(responses):,.0f}",
            detail=f"{amount(sum(responses))} in all",
        ),
        Fact(label="Cut at the limit", value=f"{percent(truncated)} %", detail="of the responses"),
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
    chart = Chart("accuracy", "Accuracy by benchmark", figures.accuracy(summary, published), about, "wide", "percent")
    hint = f"Bars are the {INTERVAL}."
    return Section("Accuracy", hint, [chart], [accuracy_table(summary)])


def _judged_by(summary: Summary) -> str:
    judges = [summary.about.get("rule"), summary.about.get("verifier_model")]
    return ", then ".join(str(judge) for judge in judges if judge) or "an unknown rule"


def _curves(summary: Summary) -> list[Section]:
    if all(b.samples_per_problem == 1 for b in summary.benchmarks):
        return []
    drawn = [
        Chart(
            "pass",
            "pass@k",
            figures.curves(summary, "pass_at"),
            "At least one of k responses is right.",
            "half",
            "over k",
        ),
        Chart(
            "maj",
            "maj@k",
            figures.curves(summary, "maj_at"),
            "The answer that most of k box is right.",
            "half",
            "over k",
        ),
    ]
    return [Section("Samples", "Expected over all choices of k responses to a problem.", drawn, [pass_table(summary)])]


def _lengths(evaluation: Evaluation) -> Section:
    drawn = [
        Chart(f"lengths-{i}", part.name, figures.lengths(part.judged), unit="responses over tokens")
        for i, part in enumerate(evaluation.benchmarks)
    ]
    return Section("Response lengths", "Responses by their number of tokens, right and wrong.", drawn)


def _responses(summary: Summary) -> list[Section]:
    sections = [Section("Responses in figures", tables=[text_table(summary)], notes=glossary())]
    if summary.behaviours:
        table = behaviour_table(summary)
        sections.append(Section("Cognitive behaviours", behaviours_explained(summary), tables=[table]))
    return sections


def _render(*, sections: Sequence[Section], transcripts: Transcripts | None, **context: Any) -> str:
    charts = [chart for section in sections for chart in section.charts]
    curves: dict[str, Any] = {chart.name: chart.figure for chart in charts if chart.kind == "curves"}
    most = max((curve["most"] for curve in curves.values()), default=0)
    return render(
        __package__,
        charts={"axes": {"k": {"first": list(range(1, most + 1)), "size": 1}}, "charts": curves},
        records={
            "problems": transcripts.problems if transcripts else [],
            "transcripts": transcripts.shown if transcripts else [],
        },
        **context,
        sections=sections,
        average=AVERAGE,
        transcripts=transcripts,
        symbols=figures.SYMBOLS,
        height=figures.HISTOGRAM_HEIGHT,
    )
