"""ProRL's mathematics verifier: a response is right if either of two verifiers accepts it."""

from fastgrpo.rewards.deepscaler import deepscaler
from fastgrpo.rewards.hf_math_verify import math_verify
from fastgrpo.rewards.known_answers import EQUIVALENT, SELF_TEST, UNBOXED_IS_RIGHT, after_thought, known_answers


@known_answers(*SELF_TEST, *EQUIVALENT, *after_thought(*EQUIVALENT), UNBOXED_IS_RIGHT)
def prime_union(response: str, answer: str) -> bool:
    """Whether ``deepscaler`` or ``math_verify`` accepts the response.

    Source: ProRL (Liu et al. 2025, arXiv 2505.24864), section on rewards: 1 if DeepScaleR's verifier or math-verify
    passes, else 0. Its code is not public. Each of the two follows the code that its own project published.
    """
    return deepscaler(response, answer) or math_verify(response, answer)
