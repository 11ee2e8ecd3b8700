"""Waits for what other threads do."""

import time
from collections.abc import Callable

LONG_S = 15.0  # nothing here takes so long unless it is broken


def until(is_so: Callable[[], object]) -> None:
    """Returns once it is so."""
    end = time.monotonic() + LONG_S
    while not is_so():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.005)
