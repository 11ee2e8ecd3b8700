"""Rollouts as a table."""

from collections.abc import Mapping, Sequence
from typing import Any


def table_of(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Columns and cells. Text that UTF-8 cannot hold, as a model may write it, has question marks in its place."""
    columns = list(dict.fromkeys(name for row in rows for name in row if name != "step"))
    return columns, [[_cell(row.get(name)) for name in columns] for row in rows]


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, int | float):
        return value
    return str(value).encode(errors="replace").decode()
