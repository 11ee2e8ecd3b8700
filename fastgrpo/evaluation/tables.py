"""The figures of an evaluation as tables for people (markdown) and for programs (JSON)."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from fastgrpo.evaluation.statistics import LEVEL, RESAMPLES, Estimate
from fastgrpo.evaluation.summary import Accuracies, BenchmarkSummary, Summary
from fastgrpo.evaluation.text_metrics import DEFINITIONS

AVERAGE = "average"
ACCURACY_DEFINITIONS = {
    "avg": "mean over problems of the share of right responses (avg@k)",
    "pass": "unbiased chance that at least one of k responses is right (pass@k, Chen et al. 2021)",
    "maj": "expected accuracy of the answer that most of k responses box (maj@k), ties broken evenly",
    AVERAGE: "mean over benchmarks of equal weight",
}
INTERVAL = f"{100 * LEVEL:g} % interval (percentile bootstrap over problems, {RESAMPLES:,} resamples)"

Table = tuple[list[str], list[list[str]]]  # head and rows


def averages(summary: Summary) -> dict[str, Estimate]:
    """Benchmark -> its avg@k; then the average, if there are several benchmarks."""
    values = {b.name: b.accuracies.avg for b in summary.benchmarks}
    return values | ({AVERAGE: summary.average.avg} if summary.average else {})


def powers_of_two(most: int) -> list[int]:
    """1, 2, 4 and so on up to `most`, and `most` itself."""
    return sorted({2**i for i in range(most.bit_length())} | {most})


def percent(share: float | None, digits: int = 1) -> str:
    """The share as a percentage without its sign; a dash for None."""
    return "–" if share is None else f"{100 * share:.{digits}f}"


def with_interval(estimate: Estimate) -> str:
    """Percentage ± half of the interval's width; the bounds themselves are in the JSON."""
    if estimate.low is None or estimate.high is None:
        return percent(estimate.value, 2)
    return f"{percent(estimate.value, 2)} ± {percent((estimate.high - estimate.low) / 2, 2)}"


def markdown_grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table, its first column on the left and the others on the right; the row of the average is bold."""
    marks = [":--", *["--:"] * (len(head) - 1)]
    bold = [[f"**{cell}**" if row[0] == AVERAGE and cell not in ("", "–") else cell for cell in row] for row in rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in [head, marks, *bold])


def _cell(text: str) -> str:
    """The text on one line, its bars escaped, since a bar would end the cell."""
    return " ".join(text.split()).replace("|", "\\|")


def as_markdown(summary: Summary) -> str:
    parts = [f"# {summary.name}", _about(summary), *(f"Note: {note}." for note in summary.about.get("notes", []))]
    parts += ["## Accuracy", markdown_grid(*accuracy_table(summary))]
    parts += [f"Percentages; ± is half of the {INTERVAL}."]
    if any(b.samples_per_problem > 1 for b in summary.benchmarks):
        parts += ["## pass@k", markdown_grid(*pass_table(summary))]
    parts += ["## Responses", markdown_grid(*text_table(summary))]
    parts += ["\n".join(f"- {line}" for line in glossary())]
    parts += ["## Protocol", markdown_grid(*protocol_table(summary))]
    if summary.behaviours:
        parts += ["## Cognitive behaviours", markdown_grid(*behaviour_table(summary)), behaviours_explained(summary)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def accuracy_table(summary: Summary) -> Table:
    head = ["benchmark", "problems", "k", "avg@k", "pass@k", "maj@k", "always right", "never right"]
    rows = [
        [b.name, str(b.num_problems), str(b.samples_per_problem), *_accuracy_cells(b.accuracies), *map(str, b.solved)]
        for b in summary.benchmarks
    ]
    if summary.average:
        k = {b.samples_per_problem for b in summary.benchmarks}
        cells = _accuracy_cells(summary.average)
        if len(k) > 1:  # benchmarks with 32 and with 4 samples have an average accuracy, but no common pass@k
            cells = [cells[0], "–", "–"]
        rows.append([AVERAGE, "", str(k.pop()) if len(k) == 1 else "", *cells, "", ""])
    return head, rows


def _accuracy_cells(accuracies: Accuracies) -> list[str]:
    return [with_interval(e) for e in (accuracies.avg, accuracies.pass_at[-1], accuracies.maj_at[-1])]


def pass_table(summary: Summary) -> Table:
    """pass@k for the powers of two and for the number of samples of every benchmark."""
    ks = sorted({k for b in summary.benchmarks for k in powers_of_two(b.samples_per_problem)})
    lines = [(b.name, b.accuracies) for b in summary.benchmarks]
    lines += [(AVERAGE, summary.average)] if summary.average else []
    rows = [
        [name, *(percent(a.pass_at[k - 1].value, 2) if k <= len(a.pass_at) else "–" for k in ks)] for name, a in lines
    ]
    return ["benchmark", *(f"@{k}" for k in ks)], rows


_TEXT_COLUMNS = {
    "tokens": "tokens",
    "right_tokens": "right",
    "wrong_tokens": "wrong",
    "stopped_tokens": "stopped",
    "truncated": "truncated %",
    "boxed": "boxed %",
    "repeating": "repeating %",
    "keywords": "keywords",
    "distinct_4": "distinct-4",
}


def text_table(summary: Summary) -> Table:
    return ["benchmark", *_TEXT_COLUMNS.values()], [_text_row(b) for b in summary.benchmarks]


def _text_row(benchmark: BenchmarkSummary) -> list[str]:
    cells = [benchmark.name]
    for name in _TEXT_COLUMNS:
        value = getattr(benchmark.text, name)
        if value is None:
            cells.append("–")
        elif name.endswith("tokens"):
            cells.append(f"{value:,.0f}")
        else:
            cells.append(f"{value:.2f}" if name in ("keywords", "distinct_4") else percent(value))
    return cells


def behaviour_table(summary: Summary) -> Table:
    """The percentage of judged responses that show each behaviour."""
    found = summary.behaviours["benchmarks"]
    counts = {"num_judged": "judged", "num_left_out": "left out"}
    names = [name for name in next(iter(found.values()), {}) if name not in counts]
    rows = [
        [benchmark, *(f"{row[count]:,}" for count in counts), *(percent(row[name]) for name in names)]
        for benchmark, row in found.items()
    ]
    return ["benchmark", *counts.values(), *(name.replace("_", " ") for name in names)], rows


def behaviours_explained(summary: Summary) -> str:
    return f"Percentages of the responses that {summary.behaviours['judge']} judged."


def _about(summary: Summary) -> str:
    facts = {name: summary.about.get(name) for name in ("model", "suite", "rule", "verifier_model", "seed")}
    return " · ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts.items() if value not in (None, ""))


def protocol_table(summary: Summary) -> Table:
    """The protocol of each benchmark."""
    names = ("temperature", "top_p", "max_response_tokens", "samples_per_problem", "template", "chat_template")
    asked = {b.name: summary.about["benchmarks"][b.name] for b in summary.benchmarks}
    rows = [[name, *(_shown(one.get(n)) for n in names)] for name, one in asked.items()]
    return ["benchmark", *(n.replace("_", " ") for n in names)], rows


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)


def glossary() -> list[str]:
    """The meaning of each column of `text_table`."""
    return [f"{title.removesuffix(' %')}: {DEFINITIONS[name]}" for name, title in _TEXT_COLUMNS.items()]


def as_json(summary: Summary) -> dict[str, Any]:
    """Every figure with its interval, all k, counts, and the definition of each name."""
    return {
        "name": summary.name,
        "about": dict(summary.about),
        "benchmarks": {b.name: _benchmark_json(b) for b in summary.benchmarks},
        "average": _accuracies_json(summary.average) if summary.average else None,
        "behaviours": dict(summary.behaviours),
        "interval": INTERVAL,
        "definitions": {**ACCURACY_DEFINITIONS, **DEFINITIONS},
    }


def _benchmark_json(benchmark: BenchmarkSummary) -> dict[str, Any]:
    return {
        "num_problems": benchmark.num_problems,
        "samples_per_problem": benchmark.samples_per_problem,
        **_accuracies_json(benchmark.accuracies),
        "always_right": benchmark.always_right,
        "never_right": benchmark.never_right,
        "text": asdict(benchmark.text),
        "protocol": dict(benchmark.protocol),
    }


def _accuracies_json(accuracies: Accuracies) -> dict[str, Any]:
    by_k = {"pass": accuracies.pass_at, "maj": accuracies.maj_at}
    return {
        "avg": asdict(accuracies.avg),
        **{name: {str(k): asdict(e) for k, e in enumerate(listed, start=1)} for name, listed in by_k.items()},
    }
