"""A final answer as a response in the form that each verifier demands."""

from collections.abc import Callable

import fastgrpo.rewards
from fastgrpo.rewards.judgement import Judgement


def in_a_box(answer: str) -> str:
    return f"Let me see. The answer is $\\boxed{{{answer}}}$."


def after_a_thought(answer: str) -> str:
    return f"<think>Is it 5? No.</think>{in_a_box(answer)}"


def on_an_answer_line(answer: str) -> str:
    return f"Let me see.\nAnswer: {answer}"


OTHER_FORMS = {"dapo_minerva": on_an_answer_line, "deepscaler": after_a_thought, "prime_union": after_a_thought}

RESPONSES: dict[str, Callable[[str], str]] = {
    name: OTHER_FORMS.get(name, in_a_box)
    for name in fastgrpo.rewards.__all__
    if hasattr(getattr(fastgrpo.rewards, name), "known_answers")
}


def verifier(name: str) -> Callable[[str, str], Judgement]:
    function: Callable[[str, str], Judgement] = getattr(fastgrpo.rewards, name)
    return function
