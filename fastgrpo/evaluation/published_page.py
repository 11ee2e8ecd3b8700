"""``python -m fastgrpo.evaluation.published_page > docs/published.md``: the published tables as a page."""

from fastgrpo.evaluation.published import PROTOCOLS, TABLES, Table
from fastgrpo.evaluation.tables import markdown_grid


def markdown() -> str:
    """All tables, each with its source, its protocols and its notes."""
    head = (
        "# Published results\n\n"
        "Accuracies in percent as their sources print them, with the protocol of each column. @32 is a mean over 32\n"
        "responses to each problem. The page of an evaluation shows those that have its own protocol. This file is\n"
        "written by `python -m fastgrpo.evaluation.published_page > docs/published.md`, from\n"
        "`fastgrpo/evaluation/published.py`.\n"
    )
    return "\n".join([head, _protocols(), *map(_page_of, TABLES)])


def _protocols() -> str:
    head = ["protocol", "temperature", "top-p", "tokens", "judged by"]
    rows = [
        [name, *(_or_dash(value) for value in (p.temperature, p.top_p, p.max_response_tokens)), p.judged_by]
        for name, p in PROTOCOLS.items()
    ]
    return "## Protocols\n\n" + markdown_grid(head, rows)


def _page_of(table: Table) -> str:
    has_average = any(row.average is not None for row in table.rows)
    head = ["model", *(column.label for column in table.columns), *(["average"] if has_average else [])]
    rows = [
        [row.model, *(_number(v, table.digits) for v in (*row.values, *([row.average] if has_average else [])))]
        for row in table.rows
    ]
    notes = [table.note] if table.note else []
    notes += [f"{row.model}: {row.note}." for row in table.rows if row.note]
    about = f"Source: {table.source}. Protocol: {_protocols_of(table)}."
    return f"## {table.title}\n\n{about}\n\n{markdown_grid(head, rows)}" + "".join(f"\n{note}\n" for note in notes)


def _protocols_of(table: Table) -> str:
    """The protocols of a table, each with its columns if there are several."""
    columns: dict[str, list[str]] = {}
    for column in table.columns:
        columns.setdefault(column.protocol, []).append(column.label)
    if len(columns) == 1:
        return next(iter(columns))
    return "; ".join(f"{protocol} ({', '.join(labels)})" for protocol, labels in columns.items())


def _number(value: float | None, digits: int) -> str:
    if value is None:
        return "–"
    return max(f"{value:.{digits}f}", str(value), key=len)  # a value printed with more digits keeps them


def _or_dash(value: float | None) -> str:
    return "–" if value is None else str(value)


if __name__ == "__main__":
    print(markdown(), end="")
