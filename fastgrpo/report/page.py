"""Builds a run's page: one html file that contains everything and loads nothing."""

import json
import os
from pathlib import Path

from fastgrpo.pages import counted, render
from fastgrpo.report.charts import charts, drawn, window
from fastgrpo.report.headline import headline, incidents, subtitle
from fastgrpo.report.marks import marks_of
from fastgrpo.report.read import Run, mapping, number, read_run


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
    sections, marks = charts(run), marks_of(run)
    lines = [{"label": mark.label, "text": mark.text, "after": mark.after} for mark in marks if mark.after]
    return render(
        __package__,
        charts={**drawn(sections, run), "marks": lines},
        records={"rollouts": run.rollouts.shown, "right": _right(run)},
        title=str(run.about.get("name") or run.folder.resolve().name),
        subtitle=subtitle(run),
        facts=headline(run),
        notes=incidents(run) + run.notes,
        sections=sections,
        window=window(run),
        marks=marks,
        rollouts=run.rollouts,
        counted=counted,
        settings=_settings(run),
    )


def _settings(run: Run) -> dict[str, str]:
    settings = mapping(run.about.get("config"))
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in sorted(settings.items())}


def _right(run: Run) -> float:
    """The reward from which a response counts as correct: halfway between the rewards of right and wrong."""
    correct, wrong = number(run.setting("reward.correct")), number(run.setting("reward.wrong"))
    return 0.5 if correct is None or wrong is None else (correct + wrong) / 2
