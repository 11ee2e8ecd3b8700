"""A final answer as a response in the form that each verifier demands."""

from collections.abc import Callable

import fastgrpo.rewards
from fastgrpo.rewards.pool.wire import Judgement


def in_a_box(answer: str) -> str:
    return f"Let me see. The answer is $\\boxed{{{answer}}}$."


def after_a_thought(answer: str) -> str:
    return f"<think>Is it 5? No.</think>{in_a_box(answer)}"


def on_an_answer_line(answer: str) -> str:
    return f"Let me see.\nAnswer: {answer}"


RESPONSES: dict[str, Callable[[str], str]] = {
    "strict_boxed": in_a_box,
    "dapo_minerva": on_an_answer_line,
    "mathd_or_sympy": in_a_box,
    "deepscaler": after_a_thought,
    "math_verify": in_a_box,
    "simplerl_mix": in_a_box,
    "format_penalty": in_a_box,
    "prime_union": after_a_thought,
}


def verifier(name: str) -> Callable[[str, str], Judgement]:
    function: Callable[[str, str], Judgement] = getattr(fastgrpo.rewards, name)
    return function
