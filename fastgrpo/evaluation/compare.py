"""Compares runs on the same problems: which is better, by how much, and whether chance explains it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import starmap
from pathlib import Path
from typing import Any

import numpy as np

from fastgrpo.evaluation.page import comparison_page
from fastgrpo.evaluation.records import Evaluation
from fastgrpo.evaluation.results import replace_text
from fastgrpo.evaluation.statistics import SIGN_FLIPS, Difference, Estimate, avg_at_k, estimates, paired_difference
from fastgrpo.evaluation.tables import AVERAGE, INTERVAL, Table, markdown_grid, with_interval
from fastgrpo.json_lines import write_json

_JUDGED_BY = ("rule", "verifier_model", "compass_without_question")
_NOT_PROTOCOL = ("source", "num_problems", "prompts")
_EXPLAINED = (
    f"± is half of the {INTERVAL}. p is from the two-sided paired sign flip over problems ({SIGN_FLIPS:,} draws): how "
    "often two equal runs would differ at least as much. It judges one comparison: of nine benchmarks on which "
    "two runs are equal, one or more has p < 0.05 in about a third of all cases. Look at the average first."
)


@dataclass(frozen=True)
class Comparison:
    """The figures of several runs on the benchmarks that all of them have, and on their average, which comes last."""

    accuracies: dict[str, dict[str, Estimate]]  # run -> benchmark -> avg@k
    differences: dict[str, dict[str, Difference]]  # run -> benchmark -> difference to the first run
    models: dict[str, str]  # run -> model
    warnings: list[str]

    @property
    def first(self) -> str:
        return next(iter(self.accuracies))


def compare(evaluations: Sequence[Evaluation]) -> str:
    """Markdown: the accuracy of every run, and each one's difference to the first with its interval and p-value.

    Raises ValueError for fewer than two evaluations, for an incomplete one, and where a benchmark of one name has
    other problems or answers. Protocols may differ; then a warning says which.
    """
    return as_markdown(compared(evaluations))


def write_comparison(evaluations: Sequence[Evaluation], folder: Path) -> None:
    """Writes compare.md, compare.json and compare.html into the folder. Raises what `compare` raises."""
    comparison = compared(evaluations)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "compare.json", as_json(comparison))
    replace_text(folder / "compare.md", as_markdown(comparison))
    html = comparison_page(
        _title(comparison),
        [f"{run}: {model}" for run, model in comparison.models.items()],
        comparison.accuracies,
        comparison.differences,
        tables(comparison),
        comparison.warnings,
        _EXPLAINED,
    )
    replace_text(folder / "compare.html", html)


def compared(evaluations: Sequence[Evaluation]) -> Comparison:
    """The figures of `compare`."""
    if len(evaluations) < 2:
        raise ValueError(f"a comparison needs two evaluations or more, got {len(evaluations)}.")
    evaluations, warnings = _on_common_benchmarks(_with_unique_names(evaluations))
    first, *others = evaluations
    for other in others:
        _require_same_problems(first, other)
        warnings += _protocol_differences(first, other)
    return Comparison(
        accuracies={e.about["name"]: _accuracies(e) for e in evaluations},
        differences={e.about["name"]: _differences(first, e) for e in others},
        models={e.about["name"]: str(e.about.get("model", "unknown model")) for e in evaluations},
        warnings=warnings,
    )


def _with_unique_names(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """The evaluations under their names, or under their folders where two have the same name."""
    names = [str(e.about.get("name") or e.folder.name) for e in evaluations]
    if len(set(names)) < len(names):
        names = [str(e.folder) for e in evaluations]
    if len(set(names)) < len(names):
        raise ValueError(f"an evaluation is compared with others, not with itself: got {', '.join(names)}.")
    return [
        Evaluation(e.folder, {**e.about, "name": name}, e.benchmarks)
        for e, name in zip(evaluations, names, strict=True)
    ]


def _on_common_benchmarks(evaluations: Sequence[Evaluation]) -> tuple[list[Evaluation], list[str]]:
    parts = [{part.name: part for part in e.benchmarks} for e in evaluations]
    common = [name for name in parts[0] if all(name in found for found in parts)]
    if not common:
        raise ValueError("the evaluations have no benchmark in common: nothing can be compared.")
    left_out = sorted({name for found in parts for name in found} - set(common))
    warnings = [f"{', '.join(left_out)}: left out, since not all runs have it."] if left_out else []
    return [
        Evaluation(e.folder, e.about, [found[name] for name in common])
        for e, found in zip(evaluations, parts, strict=True)
    ], warnings


def _require_same_problems(first: Evaluation, other: Evaluation) -> None:
    for mine, theirs in zip(first.benchmarks, other.benchmarks, strict=True):
        if len(mine.problems) != len(theirs.problems):
            raise ValueError(
                f"{mine.name} has {len(mine.problems)} problems in {first.folder} and {len(theirs.problems)} in "
                f"{other.folder}: a paired comparison needs the same problems."
            )
        for one, same in zip(mine.problems, theirs.problems, strict=True):
            if one != same:
                raise ValueError(
                    f"{mine.name}, problem {one.problem} is another one, or has another answer, in {other.folder} than "
                    f"in {first.folder}: a paired comparison needs the same problems."
                )


def _protocol_differences(first: Evaluation, other: Evaluation) -> list[str]:
    """One sentence for each setting that differs, with the benchmarks concerned."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for part in first.benchmarks:
        mine, theirs = first.about["benchmarks"][part.name], other.about["benchmarks"][part.name]
        for key in sorted((mine.keys() | theirs.keys()) - set(_NOT_PROTOCOL)):
            if mine.get(key) != theirs.get(key):
                found.setdefault((key, repr(theirs.get(key)), repr(mine.get(key))), []).append(part.name)
    for key in _JUDGED_BY:
        if first.about.get(key) != other.about.get(key):
            found[key, repr(other.about.get(key)), repr(first.about.get(key))] = ["all benchmarks"]
    names = (other.about["name"], first.about["name"])
    return [
        f"Protocols differ on {', '.join(on)}: {key} is {theirs} in {names[0]} and {mine} in {names[1]}."
        for (key, theirs, mine), on in found.items()
    ]


def _accuracies(evaluation: Evaluation) -> dict[str, Estimate]:
    means = {name: values[:, None] for name, values in _problem_means(evaluation).items()}
    found = {name: estimates({name: values})[0] for name, values in means.items()}
    return found | ({AVERAGE: estimates(means)[0]} if len(means) > 1 else {})


def _differences(first: Evaluation, other: Evaluation) -> dict[str, Difference]:
    mine, theirs = _problem_means(first), _problem_means(other)
    found = {name: paired_difference({name: mine[name]}, {name: theirs[name]}) for name in mine}
    return found | ({AVERAGE: paired_difference(mine, theirs)} if len(mine) > 1 else {})


def _problem_means(evaluation: Evaluation) -> dict[str, np.ndarray]:
    return {part.name: avg_at_k(part.outcomes()) for part in evaluation.benchmarks}


def tables(comparison: Comparison) -> list[Table]:
    """The accuracies, one row for each run; then a table for each other run with its differences to the first."""
    columns = list(comparison.accuracies[comparison.first])
    columns = columns[-1:] + columns[:-1]  # the average first: a narrow page still shows it
    rows = [
        [run, *(with_interval(found[benchmark]) for benchmark in columns)]
        for run, found in comparison.accuracies.items()
    ]
    return [(["run", *columns], rows), *starmap(_difference_table, comparison.differences.items())]


def _difference_table(run: str, by_benchmark: Mapping[str, Difference]) -> Table:
    rows = [
        [benchmark, signed(found.estimate.value), _interval(found), f"{found.p_value:.2g}"]
        for benchmark, found in by_benchmark.items()
    ]
    return [run, "difference", "interval", "p"], rows


def signed(share: float) -> str:
    """Percentage points with their sign; the minus is the typographic one."""
    return f"{100 * share:+.2f}".replace("-", "\u2212")


def _interval(found: Difference) -> str:
    low, high = found.estimate.low, found.estimate.high
    return "–" if low is None or high is None else f"{signed(low)} to {signed(high)}"


def _title(comparison: Comparison) -> str:
    return " against ".join(reversed(comparison.accuracies))


def as_markdown(comparison: Comparison) -> str:
    accuracies, *found = (markdown_grid(*table) for table in tables(comparison))
    warnings = "".join(f"> {warning}\n" for warning in comparison.warnings)
    parts = [f"# {_title(comparison)}", warnings, "## Accuracy", accuracies]
    parts += [f"## Differences to {comparison.first}", *found, _EXPLAINED]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def as_json(comparison: Comparison) -> dict[str, Any]:
    def of(by_name: Mapping[str, Any]) -> dict[str, Any]:
        return {name: asdict(value) for name, value in by_name.items()}

    return {
        "first": comparison.first,
        "accuracies": {run: of(found) for run, found in comparison.accuracies.items()},
        "differences": {run: of(found) for run, found in comparison.differences.items()},
        "warnings": comparison.warnings,
        "interval": INTERVAL,
    }
