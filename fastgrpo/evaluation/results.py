"""Writes what an evaluation found into its folder: results.json, results.md and report.html."""

from pathlib import Path

from fastgrpo.evaluation.page import page
from fastgrpo.evaluation.records import Evaluation
from fastgrpo.evaluation.summary import summarize
from fastgrpo.evaluation.tables import as_json, as_markdown
from fastgrpo.json_lines import write_json


def write_results(evaluation: Evaluation) -> None:
    """Raises ValueError where the evaluation is incomplete; then nothing is written."""
    summary = summarize(evaluation)
    markdown, html = as_markdown(summary), page(evaluation, summary)
    write_json(evaluation.folder / "results.json", as_json(summary))
    replace_text(evaluation.folder / "results.md", markdown)
    replace_text(evaluation.folder / "report.html", html)


def replace_text(path: Path, text: str) -> None:
    """A reader meets the old file or the new one, never half of it."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
