"""Problems, and the responses to them with their verdicts, as lines to read."""

from collections.abc import Iterator

from rich.text import Text

from fastgrpo.types import Group, Sample

PROBLEM_CHARS, RESPONSE_CHARS = 300, 240
COLOURS = {"right": "green", "wrong": "red"}


def group_lines(group: Group, number: int) -> Iterator[Text]:
    """A problem, its answer, and a head line and the text of each response."""
    prompt = group[0].prompt
    yield Text(f"problem {number}: {shortened(prompt.text, PROBLEM_CHARS)}", "bold")
    yield Text(f"answer: {shortened(prompt.answer, PROBLEM_CHARS) or 'none'}")
    for n, sample in enumerate(group, start=1):
        said = verdict_of(sample)
        ended = "cut" if sample.response.finish_reason == "length" else "ended"
        yield Text.assemble(
            f"  {n} ", (said, COLOURS.get(said, "yellow")), f", {ended}, {len(sample.response)} tokens", style="dim"
        )
        yield Text(f"    {shortened(sample.text or '', RESPONSE_CHARS)}")


def verdict_of(sample: Sample) -> str:
    """What was said of a response: right or wrong, its number, or why it has none."""
    if sample.failure:
        return f"no verdict ({sample.failure})"
    if not sample.teaches:
        return "no reward"
    if sample.graded:
        return f"reward {sample.score:g}"
    return "right" if sample.correct else "unformatted" if sample.unformatted else "wrong"


def shortened(text: str, most: int) -> str:
    """The text in one line; of a long one the beginning and the end."""
    line = " ".join(text.split())
    if len(line) <= most:
        return line
    return f"{line[: most * 2 // 3]} [...] {line[len(line) - most // 3 :]}"
