"""The large numbers in a page's header."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A number with its name, and the earlier value `before` if it is a change."""

    label: str
    value: str
    before: str = ""
    detail: str = ""
