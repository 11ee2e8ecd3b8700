"""What the page of a run and the page of an evaluation share: one template, one style, one way to draw and to read.

A page is one html file. It needs no network and no server, and runs no script but ours.
"""

from fastgrpo.pages.colours import COLOURS
from fastgrpo.pages.fact import Fact
from fastgrpo.pages.html import MAX_TEXT_BYTES, embed, render
from fastgrpo.pages.numbers import rounded
from fastgrpo.pages.spread import spread
from fastgrpo.pages.words import amount, counted, duration

__all__ = ["COLOURS", "MAX_TEXT_BYTES", "Fact", "amount", "counted", "duration", "embed", "render", "rounded", "spread"]
