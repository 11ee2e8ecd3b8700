"""What a verifier must say of answers that everybody can judge, before it may judge a run."""

from collections.abc import Callable
from typing import Any, TypeVar

from fastgrpo.rewards.judgement import KnownAnswer

Verifier = TypeVar("Verifier", bound=Callable[..., Any])

SELF_TEST: tuple[KnownAnswer, ...] = (
    ("Six times seven is 42, so the answer is \\boxed{42}.", "42", True),
    ("Six times seven is 41, so the answer is \\boxed{41}.", "42", False),
    ("", "42", False),
)

EQUIVALENT: tuple[KnownAnswer, ...] = (
    ("It is \\boxed{\\dfrac12}.", "\\frac{1}{2}", True),
    ("It is \\boxed{\\sqrt{8}}.", "2\\sqrt{2}", True),
    ("It is \\boxed{\\frac{1}{3}}.", "\\frac{1}{2}", False),
    ("It is \\boxed{(2, 1)}.", "(1,2)", False),
)


UNBOXED_IS_RIGHT: KnownAnswer = ("Six times seven: the answer is 42.", "42", True)
UNREDUCED_IS_WRONG: KnownAnswer = ("It is \\boxed{\\frac{2}{4}}.", "\\frac{1}{2}", False)


def known_answers(*cases: KnownAnswer) -> Callable[[Verifier], Verifier]:
    """A decorator that notes on a verifier what it must say of these responses."""

    def note(verifier: Verifier) -> Verifier:
        verifier.known_answers = cases  # type: ignore[attr-defined]
        return verifier

    return note


def self_test_of(verifier: Callable[..., Any]) -> tuple[KnownAnswer, ...]:
    """(response, answer, verdict) cases that a verifier was decorated with, as those of this package are.

    Raises ValueError for a function without any.
    """
    known: tuple[KnownAnswer, ...] = getattr(verifier, "known_answers", ())
    if not known:
        name = getattr(verifier, "__qualname__", repr(verifier))
        raise ValueError(
            f"{name} is not a verifier of fastgrpo.rewards; write its known answers in the recipe: "
            "self_test = ((response, answer, verdict), ...), some right and some wrong"
        )
    return known


def demands_box(verifier: Callable[..., Any] | None) -> bool | None:
    """Whether a verifier accepts nothing outside of a box, as its known answers show it; None where it has none."""
    right = [response for response, _, verdict in getattr(verifier, "known_answers", ()) if verdict is True]
    return all("\\boxed{" in response for response in right) if right else None


def after_thought(*cases: KnownAnswer) -> tuple[KnownAnswer, ...]:
    """The same cases, each response after a closed thought."""
    return tuple((f"<think>Let me see.</think>{response}", answer, verdict) for response, answer, verdict in cases)
