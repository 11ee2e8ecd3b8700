"""All steps for a GPU machine, most important first, within a time budget; `--list` shows them."""

from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Returns 0 if every chosen step has passed, 1 if one failed or was not reached, 2 without a GPU."""
    from bench.gpu.command import main

    return main(argv)
