"""Builds a run's page: one html file that contains everything and loads nothing."""

import base64
import hashlib
import json
import os
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from fastgrpo.report.figures import Chart, charts, window
from fastgrpo.report.headline import headline, incidents, subtitle
from fastgrpo.report.read import Run, mapping, number, read_run
from fastgrpo.report.rollouts import embed
from fastgrpo.report.words import counted


def write_report(run_dir: Path) -> Path:
    """Writes ``run_dir/report.html`` and returns its path. The run may still be going on.

    Reads run.json, metrics.jsonl, rollouts.jsonl and summary.json; only metrics.jsonl must be there. Raises ValueError
    if the folder or this file is missing, or the file has no step.
    """
    run = read_run(Path(run_dir))
    path = run.folder / "report.html"
    unfinished = run.folder / "report.html.part"
    # A text from a model may contain half a surrogate pair, which utf-8 cannot encode.
    unfinished.write_bytes(_page(run).encode("utf-8", errors="replace"))
    os.replace(unfinished, path)  # a reader never sees half a page
    return path


def _page(run: Run) -> str:
    sections = charts(run)
    scripts = [Markup(get_plotlyjs()), Markup(_resource("page.js"))]  # trusted: everything else is escaped
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(_resource("page.html")).render(
        name=str(run.about.get("name") or run.folder.resolve().name),
        subtitle=subtitle(run),
        facts=headline(run),
        incidents=incidents(run),
        notes=run.notes,
        sections=sections,
        window=window(run),
        rollouts=run.rollouts,
        counted=counted,
        settings=_settings(run),
        style=Markup(_resource("page.css")),
        scripts=scripts,
        script_hashes=" ".join(map(_hash, scripts)),
        data=Markup(embed({"figures": _figures(sections), "rollouts": run.rollouts.shown, "right": _right(run)})),
    )


def _figures(sections: dict[str, list[Chart]]) -> dict[str, Any]:
    drawn = {c.curve.metric: c.figure for in_section in sections.values() for c in in_section if c.figure}
    return {name: json.loads(figure.to_json()) for name, figure in drawn.items()}


def _settings(run: Run) -> dict[str, str]:
    settings = mapping(run.about.get("config"))
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in sorted(settings.items())}


def _right(run: Run) -> float:
    """The reward from which a response counts as correct: halfway between the rewards of right and wrong."""
    correct, wrong = number(run.setting("reward.correct")), number(run.setting("reward.wrong"))
    return 0.5 if correct is None or wrong is None else (correct + wrong) / 2


def _resource(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    """A script's name in a content security policy: the page runs these scripts and no script in a response."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
