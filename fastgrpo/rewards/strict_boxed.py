"""JustRL's training verifier: the last box, near the end, with exactly the answer in it."""

BOX = "\\boxed{"
WINDOW_CHARS = 100  # the original cuts to 300 characters first, which changes nothing


def strict_boxed(response: str, answer: str) -> bool:
    r"""Whether the last ``\boxed{...}`` within the last 100 characters of the response holds exactly the answer.

    No stripping, no normalisation: ``\boxed{ 42 }`` and ``\boxed{42.}`` are wrong for 42. A box that starts before the
    window is wrong, and so is a last box that never closes, whatever stands before it. Braces nest; a backslash does
    not escape them. Costs the same for every length of response.

    Source: thunlp/JustRL train/verl/utils/reward_score/math_dapo.py with ``strict_box_verify=True``.
    """
    window = response[-WINDOW_CHARS:]
    start = window.rfind(BOX)
    if start < 0:
        return False
    start += len(BOX)
    end = _closing_brace(window, start)
    return end >= 0 and window[start:end] == answer


def _closing_brace(text: str, start: int) -> int:
    """Position of the brace that closes the one just before ``start``, or -1."""
    depth = 1
    for position in range(start, len(text)):
        if text[position] == "{":
            depth += 1
        elif text[position] == "}":
            depth -= 1
            if depth == 0:
                return position
    return -1
