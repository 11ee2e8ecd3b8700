"""The rule of the suite simplerl: SimpleRL-Zoo's training verifier, or math-verify where unit words spoil a formula."""

from fastgrpo.rewards import math_verify, simplerl_mix


def simplerl_evaluated(response: str, answer: str) -> bool:
    r"""Whether the training verifier accepts the response, or math-verify does, which removes no units.

    ``simplerl_mix`` removes unit words from the response's answer and not from the gold: ``e^{t} / 3`` becomes
    ``e^{}/3``, and 55 of Minerva's 272 golds could not be met. The published grader (hkust-nlp/simpleRL-reason:
    examples/simplelr_math_eval, parser.py and grader.py) treats both sides alike and removes no units for Minerva. It
    also accepts 100 times a number, a hundredth of it, and numbers that differ from it by less than 1e-4 of it; this
    one does not.
    """
    return simplerl_mix(response, answer) or math_verify(response, answer)
