"""DeepScaleR's verifier, and its grader alone: the last box must equal the answer by ``mathd`` or by sympy."""

from fastgrpo.rewards.grading.boxes import answer_of, last_boxed
from fastgrpo.rewards.grading.mathd import equal_by_mathd
from fastgrpo.rewards.grading.sympy_grader import equal_by_sympy
from fastgrpo.rewards.known_answers import EQUIVALENT, SELF_TEST, UNREDUCED_IS_WRONG, after_thought, known_answers

END_OF_THOUGHT = "</think>"


@known_answers(*after_thought(*SELF_TEST, *EQUIVALENT, UNREDUCED_IS_WRONG), ("It is \\boxed{42}.", "42", False))
def deepscaler(response: str, answer: str) -> bool:
    r"""Whether the last box after ``</think>`` holds the answer, by ``mathd`` or by sympy.

    A response without ``</think>`` is wrong. If there are several, only the text between the first two counts.

    Source: agentica-project/rllm rllm/rewards/math_reward.py, the same in ChenxinAn-fdu/POLARIS deepscaler/rewards/,
    without its judge model, which is off by default. Ours takes one answer, the original a list of answers.
    """
    parts = response.split(END_OF_THOUGHT, 2)
    return len(parts) > 1 and mathd_or_sympy(parts[1], answer)


@known_answers(*SELF_TEST, *EQUIVALENT, UNREDUCED_IS_WRONG)
def mathd_or_sympy(response: str, answer: str) -> bool:
    """Whether the last box of the response, wherever it stands, holds the answer, by ``mathd`` or by sympy.

    This is the rule of JustRL's evaluation. No response is right for an empty answer.

    Source: ``grade_answer_verl`` of thunlp/JustRL evals/utils.py.
    """
    given = last_boxed(response)
    wanted = answer_of(answer)
    if given is None or not wanted:
        return False
    return equal_by_mathd(given, wanted) or equal_by_sympy(given, wanted)
