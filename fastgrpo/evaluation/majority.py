"""maj@k: the accuracy of the answer that most of k responses give."""

import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from fastgrpo.rewards.grading.boxes import last_boxed
from fastgrpo.rewards.grading.mathd import normalised

_INTEGER = re.compile(r"\+?(-?)0*([0-9]{1,3}(?:(?:,|\{,\})[0-9]{3})+|[0-9]+)")
_MOST_SAMPLES = 1000  # with more, the binomial coefficients overflow float64


def vote_of(response: str) -> str | None:
    """The answer that a response votes for: the content of its last box, as
    `fastgrpo.rewards.grading.mathd` normalises it.

    None without a box. ``1/2`` and ``\\frac12`` are the same vote, ``1,234`` and ``01234`` that for 1234; ``1/4`` and
    ``0.25`` are two: the verifier is not asked, because a vote must not know the gold answer.
    """
    answer = last_boxed(response)
    if answer is None:
        return None
    vote = normalised(answer)
    integer = _INTEGER.fullmatch(vote)
    return integer[1] + re.sub("[^0-9]", "", integer[2]) if integer else vote


def majority_at_k(
    votes: Sequence[str | None],  # [n], None where a response does not vote
    correct: Sequence[bool],  # [n]
) -> np.ndarray:  # [n], entry k - 1 is maj@k
    """The expected accuracy of the majority of k of the n responses, for every k: exact over all C(n, k) choices.

    The answer with the most votes wins. If several answers have as many votes, each wins with equal chance. A winner
    counts by the share of right verdicts among its votes (1 or 0, unless a verifier judges one answer in two ways).
    Responses without a box do not vote; if none of the k votes, the majority is wrong. At k = n this is the plain
    majority vote.

    Raises ValueError for more than 1,000 responses to a problem.
    """
    num_samples = len(votes)
    if num_samples > _MOST_SAMPLES:
        raise ValueError(f"maj@k takes at most {_MOST_SAMPLES} responses a problem, got {num_samples}.")
    verdicts: dict[str, list[bool]] = defaultdict(list)
    for vote, verdict in zip(votes, correct, strict=True):
        if vote is not None:
            verdicts[vote].append(bool(verdict))
    answers = [(len(given), sum(given) / len(given)) for given in verdicts.values()]
    most = max((count for count, _ in answers), default=0)
    ways = sum((_ways_won_with(answers, wins, num_samples) for wins in range(1, most + 1)), np.zeros(num_samples + 1))
    return ways[1:] / _choices(num_samples)[1:]


def _ways_won_with(
    answers: list[tuple[int, float]],  # (votes, share of right verdicts) of each answer
    wins: int,
    num_samples: int,
) -> np.ndarray:  # [n + 1] by the number of chosen responses
    """Number of choices in which the winning answers have `wins` votes, each choice weighted by its accuracy.

    This is a product of generating functions, one for each answer: the power of x counts chosen responses, t counts
    the answers that reach `wins`. Answers with fewer votes in all, and responses without a vote, can be chosen freely:
    together they are (1 + x) ** count.
    """
    able = [(count, right) for count, right in answers if count >= wins]
    free = _choices(num_samples - sum(count for count, _ in able))
    reached = np.zeros((len(able) + 1, num_samples + 1))  # [t, x]: choices
    right_sum = np.zeros_like(reached)  # [t, x]: their sums of `right` over the answers that reach `wins`
    reached[0, : len(free)] = free
    for count, right in able:
        choices = _choices(count)
        new_reached, new_right = _times(reached, choices[:wins]), _times(right_sum, choices[:wins])
        new_reached[1:, wins:] += choices[wins] * reached[:-1, : num_samples + 1 - wins]
        new_right[1:, wins:] += choices[wins] * (right_sum + right * reached)[:-1, : num_samples + 1 - wins]
        reached, right_sum = new_reached, new_right
    return sum((right_sum[t] / t for t in range(1, len(able) + 1)), np.zeros(num_samples + 1))


def _choices(count: int) -> np.ndarray:  # [count + 1]
    """Coefficients of (1 + x) ** count: C(count, i)."""
    drawn = np.arange(count)
    return np.concatenate([[1.0], np.cumprod((count - drawn) / (drawn + 1))])


def _times(rows: np.ndarray, polynomial: np.ndarray) -> np.ndarray:
    """Each row times the polynomial, cut at the rows' length. Rows of zeros are skipped, to save time."""
    return np.array([np.convolve(row, polynomial)[: len(row)] if row.any() else row for row in rows])
