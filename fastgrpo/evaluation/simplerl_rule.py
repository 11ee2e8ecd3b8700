"""SimpleRL-Zoo's evaluation judged by what trains it, without losing what its unit words cut out of a formula."""

from fastgrpo.rewards import math_verify, simplerl_mix


def simplerl_evaluated(response: str, answer: str) -> bool:
    r"""Whether the training verifier accepts the response, or math-verify does without the removal of units.

    ``simplerl_mix`` removes unit words from the response's answer and not from the gold: ``e^{t} / 3`` becomes
    ``e^{}/3``, and 55 of Minerva's 272 golds would be out of reach. The published grader (hkust-nlp/simpleRL-reason:
    examples/simplelr_math_eval, parser.py and grader.py) treats both sides alike and removes no units for Minerva; it
    also accepts 100 times and a hundredth of a number, and numbers that differ by less than 1e-4 of it. This one does
    not.
    """
    return simplerl_mix(response, answer) or math_verify(response, answer)
