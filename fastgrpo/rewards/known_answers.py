"""Self-tests: for each verifier, responses with known verdicts that it must give before it may judge a run."""

from collections.abc import Callable

from fastgrpo.rewards.dapo_minerva import dapo_minerva
from fastgrpo.rewards.deepscaler import deepscaler, mathd_or_sympy
from fastgrpo.rewards.format_penalty import format_penalty
from fastgrpo.rewards.hf_math_verify import math_verify
from fastgrpo.rewards.pool.wire import Judgement, KnownAnswer
from fastgrpo.rewards.prime_union import prime_union
from fastgrpo.rewards.simplerl_mix import simplerl_mix
from fastgrpo.rewards.strict_boxed import strict_boxed

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


def self_test_of(verifier: Callable[[str, str], Judgement]) -> tuple[KnownAnswer, ...]:
    """(response, answer, verdict) cases for one of this package's verifiers; ValueError for any other function."""
    try:
        return _KNOWN[verifier]
    except KeyError:
        name = getattr(verifier, "__qualname__", repr(verifier))
        raise ValueError(
            f"{name} is not a verifier of fastgrpo.rewards; write its known answers in the recipe: "
            "self_test = ((response, answer, verdict), ...), some right and some wrong"
        ) from None


def _after_thought(cases: tuple[KnownAnswer, ...]) -> tuple[KnownAnswer, ...]:
    thought = "<think>Let me see.</think>"
    return tuple((thought + response, answer, verdict) for response, answer, verdict in cases)


def _unformatted(cases: tuple[KnownAnswer, ...]) -> tuple[KnownAnswer, ...]:
    """The same cases, where those without a box are ``"unformatted"``."""
    return tuple((r, answer, verdict if "\\boxed{" in r else "unformatted") for r, answer, verdict in cases)


_MINERVA: tuple[KnownAnswer, ...] = (
    ("Six times seven.\nAnswer: 42", "42", True),
    ("Six times seven.\nAnswer: $\\frac12$.", "\\frac{1}{2}", True),
    ("Six times seven.\nAnswer: 41", "42", False),
    ("It is \\boxed{42}.", "42", False),
    ("", "42", False),
)
_UNREDUCED_IS_WRONG: KnownAnswer = ("It is \\boxed{\\frac{2}{4}}.", "\\frac{1}{2}", False)
_UNBOXED_IS_RIGHT: KnownAnswer = ("Six times seven: the answer is 42.", "42", True)
_WITHOUT_THOUGHT: KnownAnswer = ("It is \\boxed{42}.", "42", False)

_KNOWN: dict[Callable[[str, str], Judgement], tuple[KnownAnswer, ...]] = {
    strict_boxed: (*SELF_TEST, ("It is \\boxed{ 42 }", "42", False)),
    dapo_minerva: _MINERVA,
    mathd_or_sympy: (*SELF_TEST, *EQUIVALENT, _UNREDUCED_IS_WRONG),
    deepscaler: (*_after_thought((*SELF_TEST, *EQUIVALENT, _UNREDUCED_IS_WRONG)), _WITHOUT_THOUGHT),
    math_verify: (*SELF_TEST, *EQUIVALENT, _UNBOXED_IS_RIGHT),
    simplerl_mix: (*SELF_TEST, *EQUIVALENT, _UNBOXED_IS_RIGHT),
    format_penalty: _unformatted((*SELF_TEST, *EQUIVALENT, _UNBOXED_IS_RIGHT)),
    prime_union: (*SELF_TEST, *EQUIVALENT, *_after_thought(EQUIVALENT), _UNBOXED_IS_RIGHT),
}
