"""The format reward of SimpleRL-Zoo's ablation: a wrong answer is bad, and one without a box is worse."""

import re
from typing import Literal

from fastgrpo.rewards.known_answers import EQUIVALENT, SELF_TEST, known_answers
from fastgrpo.rewards.simplerl_mix import before_stop_words, simplerl_mix

# Braces nest three deep, as in the original.
CLOSED_BOX = re.compile(r"\\boxed\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}")


@known_answers(
    *SELF_TEST[:2],
    *EQUIVALENT,
    ("", "42", "unformatted"),
    ("Six times seven: the answer is 42.", "42", "unformatted"),
)
def format_penalty(response: str, answer: str) -> bool | Literal["unformatted"]:
    r"""``"unformatted"`` for a response without a closed ``\boxed{...}``; else whether ``simplerl_mix`` accepts it.

    The published rewards, which the recipe has, are +1 right, -0.5 wrong and -1 unformatted.

    Source: the "mix" of hkust-nlp/simpleRL-reason verl/utils/reward_score/simplelr_math.py. It compares with Qwen's
    ``math_equal``. Ours compares with math-verify, which the project used for its published runs.
    """
    if not CLOSED_BOX.search(before_stop_words(response)):
        return "unformatted"
    return simplerl_mix(response, answer)
