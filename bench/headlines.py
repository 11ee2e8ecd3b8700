"""The figures above a kernel subject's tables. In ``what``, {} is replaced by the name of our row."""

import statistics

from bench.kernel_subjects import Measured


def times_limit(measured: Measured, mode: str, what: str, bar: str) -> tuple[str, str, str]:
    """Our time divided by the limit."""
    row = measured.ours(mode)
    return what.format(row.get("name", "ours")), f"{row['ratio']:.2f}x" if row else "did not run", bar


def peak_gb(measured: Measured, mode: str, what: str, bar: str) -> tuple[str, str, str]:
    row = measured.ours(mode)
    peak = row.get("peak_bytes")
    return what.format(row.get("name", "ours")), "not measured" if peak is None else f"{peak / 1e9:.2f} GB", bar


def peak_of_plain(measured: Measured, mode: str, what: str, bar: str) -> tuple[str, str, str]:
    row = measured.ours(mode)
    share = row.get("peak_of_plain")
    return what.format(row.get("name", "ours")), "not measured" if share is None else f"{share:.2f}x", bar


def faster_than(measured: Measured, mode: str, other: str, what: str, bar: str) -> tuple[str, str, str]:
    """The other's time divided by ours, round by round; by their ratios to the limit if the runs were different."""
    ours, theirs = measured.ours(mode), measured.row(mode, other)
    what = what.format(ours.get("name", "ours"))
    if not ours.get("ratios") or not theirs.get("ratios"):
        return what, "did not run", bar
    if ours.get("measured") != theirs.get("measured"):
        return what, f"{theirs['ratio'] / ours['ratio']:.1f}x", bar
    quotients = [t / o for t, o in zip(theirs["ratios"], ours["ratios"], strict=True)]
    return what, f"{statistics.median(quotients):.1f}x", bar
