"""The counts as tables: a row a temperature, and a row a verifier."""

from collections.abc import Iterable, Mapping

from rich import box
from rich.table import Table

from fastgrpo.algorithm.signal_counts import SignalCounts


def by_temperature(counts: Mapping[float, SignalCounts], own: float) -> Table:
    """What was drawn at each temperature; the run's own is marked. Signal is of groups, length the mean in tokens."""
    headings = ("temperature", "right", "signal", "boxed", "cut", "length")
    return _table(
        headings,
        (
            (
                f"{temperature:g}{' (the run)' if temperature == own else ''}",
                _share(c.right, c.responses),
                f"{c.with_signal} of {c.groups}",
                _percent(c.boxed, c.responses),
                _percent(c.cut, c.responses),
                f"{c.tokens / max(c.responses, 1):.0f}",
            )
            for temperature, c in counts.items()
        ),
    )


def by_verifier(counts: Mapping[str, SignalCounts]) -> Table:
    """What each verifier says of the same responses."""
    return _table(
        ("verifier", "right", "signal"),
        ((name, _share(c.right, c.responses), f"{c.with_signal} of {c.groups}") for name, c in counts.items()),
    )


def _table(headings: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)  # all headings in 80 columns
    for n, heading in enumerate(headings):
        table.add_column(heading, justify="right" if n else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _share(count: int, of: int) -> str:
    return f"{count} of {of}, {_percent(count, of)}"


def _percent(count: int, of: int) -> str:
    return f"{100 * count / max(of, 1):.0f} %"
