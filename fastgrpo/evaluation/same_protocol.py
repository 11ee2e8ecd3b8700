"""The published values that an evaluation can be compared with: those that have its protocol."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastgrpo.evaluation.published import PROTOCOLS, TABLES, Column, Protocol, Row, Table
from fastgrpo.evaluation.suites import BENCHMARKS


@dataclass(frozen=True)
class Published:
    """One value: a model's accuracy on a benchmark, or on the average, in percent."""

    model: str
    benchmark: str
    value: float
    source: str
    judged_by: str


def same_protocol(protocols: Mapping[str, Mapping[str, Any]]) -> list[Published]:
    """The published values of benchmarks that were drawn by the same protocol; `protocols` has one for each benchmark.

    Temperature, top_p, max_response_tokens, samples_per_problem and num_problems must be equal; a value that a source
    does not give is never equal. A printed average is included, as benchmark "average", if it is over exactly these
    benchmarks.
    """
    return [found for table in TABLES for row in table.rows for found in _of_row(table, row, protocols)]


def _of_row(table: Table, row: Row, protocols: Mapping[str, Mapping[str, Any]]) -> list[Published]:
    alike = [_is_same(row, column, protocols.get(column.benchmark, {})) for column in table.columns]
    found = [
        Published(row.model, column.benchmark, value, table.source, _protocol(row, column).judged_by)
        for column, value, same in zip(table.columns, row.values, alike, strict=True)
        if same and value is not None
    ]
    averaged = [table.columns[i].benchmark for i in table.averaged if alike[i]]
    if row.average is not None and set(averaged) == protocols.keys() and len(averaged) == len(table.averaged):
        judged_by = _protocol(row, table.columns[table.averaged[0]]).judged_by
        found.append(Published(row.model, "average", row.average, table.source, judged_by))
    return found


def _num_problems(benchmark: str) -> int | None:
    return BENCHMARKS[benchmark].num_problems if benchmark in BENCHMARKS else None


def _protocol(row: Row, column: Column) -> Protocol:
    return PROTOCOLS[row.protocol or column.protocol]


def _is_same(row: Row, column: Column, asked: Mapping[str, Any]) -> bool:
    theirs = _protocol(row, column)
    used = {
        "temperature": theirs.temperature,
        "top_p": asked.get("top_p") if theirs.temperature == 0 else theirs.top_p,  # greedy decoding ignores it
        "max_response_tokens": theirs.max_response_tokens,
        "samples_per_problem": column.samples,
        "num_problems": column.num_problems or _num_problems(column.benchmark),
    }
    return all(value is not None and asked.get(name) == value for name, value in used.items())
