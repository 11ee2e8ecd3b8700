"""Writes the results of an evaluation into its folder: results.json, results.md and report.html."""

from pathlib import Path

from fastgrpo.evaluation.page import page
from fastgrpo.evaluation.records import Evaluation
from fastgrpo.evaluation.summary import summarize
from fastgrpo.evaluation.tables import as_json, as_markdown
from fastgrpo.json_lines import write_json


def write_results(evaluation: Evaluation) -> None:
    """Writes the three files. Raises ValueError if the evaluation is incomplete; then it writes nothing."""
    summary = summarize(evaluation)
    markdown, html = as_markdown(summary), page(evaluation, summary)
    write_json(evaluation.folder / "results.json", as_json(summary))
    replace_text(evaluation.folder / "results.md", markdown)
    replace_text(evaluation.folder / "report.html", html)


def replace_text(path: Path, text: str) -> None:
    """Replaces a file at once: a reader sees the old one or the new one, never a half."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
