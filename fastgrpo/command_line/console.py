"""The console on which commands print what is made to be read."""

import errno

from rich.console import Console


class Page(Console):
    """A console whose reader may leave: that ends the command as any lost pipe does (`pipe.quiet_when_unread`), where
    rich would exit with a code of its own."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError(errno.EPIPE, "nobody reads what is printed")
