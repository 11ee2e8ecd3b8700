"""The responses that the page shows: an evaluation has more text than a page can hold."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastgrpo.evaluation.records import BenchmarkResults, Evaluation, Judged
from fastgrpo.pages import MAX_TEXT_BYTES, spread

_MAX_CHARACTERS = 12_000  # of one text; the page leaves out the middle of a longer one
_LEFT_OUT = "\n\n[... {:,} characters are left out here ...]\n\n"


@dataclass(frozen=True)
class Transcripts:
    """The chosen responses, one record each, which names its problem by the place in `problems`."""

    problems: list[dict[str, str]]
    shown: list[dict[str, Any]]
    num_responses: int  # of the evaluation


def choose(evaluation: Evaluation, budget: int = MAX_TEXT_BYTES) -> Transcripts:
    """Right and wrong responses of every benchmark, spread evenly over its problems, within `budget` bytes in all.

    Benchmarks have equal shares, and so have right and wrong ones within a benchmark.
    """
    problems: list[dict[str, str]] = []
    shown: list[dict[str, Any]] = []
    for part in evaluation.benchmarks:
        chosen = _choose(part, budget // len(evaluation.benchmarks))
        places: dict[int, int] = {}
        rows = {row.problem: row for row in part.problems}
        for one in chosen:
            if one.problem not in places:
                places[one.problem] = len(problems)
                row = rows[one.problem]
                problems.append({"text": shorten(row.text), "answer": shorten(row.answer)})
            shown.append(_record(part.name, one, places[one.problem]))
    return Transcripts(problems, shown, sum(len(part.judged) for part in evaluation.benchmarks))


def shorten(text: str, most: int = _MAX_CHARACTERS) -> str:
    """The text, or the beginning and the end of a long one, with the number of characters that are left out."""
    if len(text) <= most:
        return text
    return text[: most // 2] + _LEFT_OUT.format(len(text) - most) + text[-(most // 2) :]


def _choose(part: BenchmarkResults, budget: int) -> list[Judged]:
    """The chosen responses to a benchmark, by problem and sample."""
    texts = {row.problem: _bytes([shorten(row.text), shorten(row.answer)]) + 24 for row in part.problems}
    wrong = _fit([one for one in part.judged if not one.correct], texts, budget // 2)
    left = budget - sum(_size(part.name, one, texts) for one in wrong)
    right = _fit([one for one in part.judged if one.correct], texts, left)
    left -= sum(_size(part.name, one, texts) for one in right)
    if len(wrong) < sum(not one.correct for one in part.judged):  # give them what the right ones left over
        used = sum(_size(part.name, one, texts) for one in wrong)
        wrong = _fit([one for one in part.judged if not one.correct], texts, used + left)
    return sorted([*right, *wrong], key=lambda one: (one.problem, one.sample))


def _fit(judged: Sequence[Judged], texts: dict[int, int], budget: int) -> list[Judged]:
    """The responses that fit into the budget, spread evenly."""
    sizes = {id(one): _size("", one, texts) for one in judged}
    chosen = list(judged)
    while chosen and (size := sum(sizes[id(one)] for one in chosen)) > budget:
        fewer = min(len(chosen) - 1, len(chosen) * budget // size)
        chosen = spread(judged, fewer) if fewer else []
    return chosen


def _size(benchmark: str, one: Judged, texts: dict[int, int]) -> int:
    """Bytes of a response in the page, with those of its problem, although several responses may share it."""
    return _bytes(_record(benchmark, one, 0)) + texts[one.problem] + 8


def _bytes(value: Any) -> int:
    return len(json.dumps(value, ensure_ascii=False).encode("utf-8", errors="backslashreplace"))


def _record(benchmark: str, one: Judged, place: int) -> dict[str, Any]:
    return {
        "benchmark": benchmark,
        "problem": one.problem,
        "sample": one.sample,
        "place": place,
        "tokens": one.num_tokens,
        "truncated": one.finish_reason == "length",
        "right": one.correct,
        "response": shorten(one.text),
    }
