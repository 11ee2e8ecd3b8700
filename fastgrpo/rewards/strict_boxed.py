"""JustRL's training verifier: the last box, near the end of the response, must contain exactly the answer."""

from fastgrpo.rewards.grading import boxes
from fastgrpo.rewards.known_answers import SELF_TEST, known_answers

BOX = "\\boxed{"
WINDOW_CHARS = 100  # the original cuts to 300 characters first, which changes nothing


@known_answers(*SELF_TEST, ("It is \\boxed{ 42 }", "42", False))
def strict_boxed(response: str, answer: str) -> bool:
    r"""Whether the last ``\boxed{...}`` within the last 100 characters of the response holds exactly the answer.

    Nothing is stripped or normalised: ``\boxed{ 42 }`` and ``\boxed{42.}`` are wrong for 42. A box that starts before
    the window is wrong. A response whose last box never closes is wrong, whatever is before it. Braces nest, and a
    backslash does not escape them. The time does not depend on the response's length.

    Source: thunlp/JustRL train/verl/utils/reward_score/math_dapo.py with ``strict_box_verify=True``.
    """
    window = response[-WINDOW_CHARS:]
    start = window.rfind(BOX)
    if start < 0:
        return False
    start += len(BOX)
    end = boxes.closing_brace(window, start)
    return end >= 0 and window[start:end] == answer
