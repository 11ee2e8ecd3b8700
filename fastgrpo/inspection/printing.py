"""What an inspection prints, part by part."""

from rich.console import Console

from fastgrpo.config import Config
from fastgrpo.inspection.answers_view import group_lines
from fastgrpo.inspection.asked import Asked
from fastgrpo.inspection.prompt_view import marked_ids, marked_text, stop_lines
from fastgrpo.inspection.subject import Subject
from fastgrpo.inspection.verdict import Finding
from fastgrpo.types import Group


def show_prompt(console: Console, subject: Subject) -> None:
    """Prints the first prompt as text and ids, and the tokens that end a response."""
    ids = subject.prompts[0].prompt_ids.tolist()
    console.print("\nThe run's first prompt, special tokens in brackets:", style="bold", markup=False)
    console.print(marked_text(ids, subject.tokenizer))
    console.print(f"\nIts {len(ids)} token ids:", style="bold", markup=False)
    console.print(marked_ids(ids, subject.tokenizer))
    console.print("\nA response ends with one of:", style="bold", markup=False)
    for line in stop_lines(subject.stop_token_ids, subject.tokenizer):
        console.print(f"  {line}", markup=False)


def say_what_is_drawn(
    console: Console, asked: Asked, config: Config, subject: Subject, temperatures: list[float]
) -> None:
    """Prints how many responses are drawn, how long at most, and who judges them."""
    limit, of_run = config.rollout.max_response_tokens, asked.config.rollout.max_response_tokens
    cut = f" (the run: {of_run}; --rollout.max_response_tokens draws longer ones)" if limit < of_run else ""
    at = ", ".join(f"{t:g}" for t in temperatures)
    console.print(
        f"\nDrawing {len(subject.prompts)} problems x {config.rollout.group_size} responses at the temperatures {at}, "
        f"of at most {limit} tokens{cut}, judged by {asked.recipe.reward_name}:",
        markup=False,
    )


def show_answers(console: Console, groups: list[Group], own: float) -> None:
    """Prints problems with their responses and verdicts."""
    for number, group in enumerate(groups, start=1):
        console.print()
        for line in group_lines(group, number):
            console.print(line)
    if groups:
        console.print(f"\n(at temperature {own:g}, the run's)", style="dim", markup=False)


def show_finding(console: Console, found: Finding) -> None:
    """Prints the verdict, the causes, and what to change."""
    colour = {"yes": "bold green", "hardly": "bold yellow", "no": "bold red"}[found.can_learn]
    console.print(f"{found.headline}.", style=colour, markup=False)
    for cause in found.causes:
        console.print(f"- {cause.why}.", markup=False)
        for mend in cause.mends:
            console.print(f"    {mend}", markup=False)
