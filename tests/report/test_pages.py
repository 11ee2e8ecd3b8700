"""What is the same in every page: the library that draws, colours that can be seen, data that scripts can read."""

import hashlib
import json
import zlib
from base64 import b64decode
from importlib import resources

import pytest

from fastgrpo.pages import COLOURS, embed, rounded

UPLOT = {  # of npm's uplot 1.6.32, `npm pack uplot@1.6.32`
    "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    "LICENSE": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
}


@pytest.mark.parametrize("name", UPLOT)
def test_the_library_is_npms(name: str) -> None:
    content = resources.files("fastgrpo.pages").joinpath("uplot", name).read_bytes()
    assert hashlib.sha256(content).hexdigest() == UPLOT[name]


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it, of #rrggbb."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("paper", ["#ffffff", "#1b1e22"])
def test_every_colour_can_be_seen_on_both_papers(paper: str) -> None:
    assert f"--card: {paper};" in resources.files("fastgrpo.pages").joinpath("base.css").read_text()
    for colour in COLOURS:
        low, high = sorted([luminance(colour), luminance(paper)])
        assert (high + 0.05) / (low + 0.05) >= 3, colour


def test_embedded_values_come_back_and_hold_no_markup() -> None:
    value = {"a": ["</script>", "half a pair \ud83d", None, 1.5]}
    packed = embed(value)
    assert packed.isascii() and not set(packed) & set("<>&\"'")
    assert json.loads(zlib.decompress(b64decode(packed))) == value


def test_numbers_are_short_and_gaps_are_none() -> None:
    assert (
        json.dumps(rounded([0.123456789, 5.0, float("nan"), 123456.0, -1e-7], 4)) == "[0.1235, 5, null, 123500, -1e-07]"
    )
