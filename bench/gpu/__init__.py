"""All that a GPU machine should be asked, most wanted first, in the time that there is: steps, a deadline, a record."""

from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Returns 0 if every chosen step has passed, 1 if one failed or was not reached, 2 without a GPU."""
    from bench.gpu.command import main

    return main(argv)
