"""The exit codes of all commands. docs/stopping.md has the table."""

DONE = 0
FAILED = 1
REFUSED = 2
"""Before anything began, with a reason that the user can mend."""
SAVED = 75
"""A signal ended the work, and its state is saved: the same command can go on. ``EX_TEMPFAIL`` of sysexits.h."""


def of_signal(number: int) -> int:
    """The code that a shell gives for a process that this signal has ended."""
    return 128 + number
