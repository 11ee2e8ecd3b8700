"""Puts a page together: one html text that contains everything and loads nothing."""

import base64
import hashlib
import json
import zlib
from collections.abc import Mapping
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

MAX_TEXT_BYTES = 8_000_000
"""Of a page's rollouts or transcripts, before `embed` compresses them to a quarter or a third."""
_SCRIPTS = ("uplot/uPlot.iife.min.js", "base.js", "numbers.js", "chart.js", "charts.js", "records.js")
_STYLES = ("uplot/uPlot.min.css", "base.css")


def render(package: str, *, charts: Mapping[str, Any], records: Mapping[str, Any], **context: Any) -> str:
    """The page of a package that has ``page.html``, which extends ``base.html``, and ``page.js`` and ``page.css``.

    `charts` and `records`, the long texts, are for the scripts; `context` is for the template, which escapes it.
    """
    # Only these texts are trusted; everything else is escaped.
    scripts = [Markup(_read(__package__, name)) for name in _SCRIPTS] + [Markup(_read(package, "page.js"))]
    styles = [_read(__package__, name) for name in _STYLES] + [_read(package, "page.css")]
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        loader=jinja2.DictLoader(
            {"base.html": _read(__package__, "base.html"), "page.html": _read(package, "page.html")}
        ),
    )
    return environment.get_template("page.html").render(
        **context,
        generator=package,
        style=Markup("\n".join(styles)),
        scripts=scripts,
        script_hashes=" ".join(map(_hash, scripts)),
        charts=Markup(embed(charts)),
        records=Markup(embed(records)),
    )


def embed(value: Any) -> str:
    """JSON, deflated, in base64: letters and digits in which no text of a model can end a script element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # A text from a model may contain half a surrogate pair, which utf-8 cannot encode: as \udxxx JSON can hold it.
    encoded = text.encode("utf-8", errors="backslashreplace")
    return base64.b64encode(zlib.compress(encoded, 9 if len(encoded) < 1_000_000 else 6)).decode()


def _read(package: str | None, name: str) -> str:
    assert package is not None
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    """A script's name in a content security policy: the page runs these scripts and no script in a response."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
