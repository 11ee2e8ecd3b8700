"""The rows that problems are from, whole: for a reward that asks for them, and for no other."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from fastgrpo.data.read import find_files, read_rows
from fastgrpo.types import Prompt


def with_columns(prompts: Sequence[Prompt], source: str) -> list[Prompt]:
    """The prompts with every column of their rows. ``source`` is what they were loaded from; it is read once more, so
    that the rows of a data set are in memory only where they are wanted."""
    found = columns_of({p.row for p in prompts}, source)
    return [replace(p, columns=found[p.row]) for p in prompts]


def columns_of(rows: set[int], source: str) -> dict[int, Mapping[str, Any]]:
    """The columns of these rows of a source, by their numbers."""
    found: dict[int, Mapping[str, Any]] = {}
    for number, row in enumerate(chain.from_iterable(map(read_rows, find_files(source)))):
        if number in rows:
            found[number] = row.values
            if len(found) == len(rows):
                break
    if missing := rows - found.keys():
        raise ValueError(f"{source!r} has changed while the run began: row {min(missing)} is gone")
    return found
