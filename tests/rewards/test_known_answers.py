import pytest

from fastgrpo.rewards import (
    VerifierPool,
    dapo_minerva,
    demands_box,
    format_penalty,
    math_verify,
    math_verify_strict,
    mathd_or_sympy,
    prime_union,
    self_test_of,
    simplerl_mix,
    strict_boxed,
)
from tests.rewards.demanded_forms import RESPONSES, verifier


@pytest.mark.parametrize("name", RESPONSES)
def test_each_verifier_passes_its_own_self_test(name: str):
    known = self_test_of(verifier(name))
    assert [verifier(name)(response, answer) for response, answer, _ in known] == [verdict for *_, verdict in known]


@pytest.mark.parametrize("name", RESPONSES)
def test_each_self_test_has_right_and_wrong_answers(name: str):
    verdicts = [verdict for *_, verdict in self_test_of(verifier(name))]
    assert True in verdicts
    assert set(verdicts) - {True}


def test_the_self_tests_tell_the_verifiers_apart():
    """But for three, which differ in where they look for an answer, and not on anything that is known of all."""
    alike = {"math_verify", "simplerl_mix", "prime_union"}
    for name in RESPONSES:
        for other in RESPONSES:
            passes = all(verifier(name)(r, a) == verdict for r, a, verdict in self_test_of(verifier(other)))
            assert passes == (name == other or {name, other} <= alike), (name, other)


def test_a_function_of_ones_own_has_no_self_test_here():
    with pytest.raises(ValueError, match="write its known answers in the recipe"):
        self_test_of(lambda response, answer: True)


@pytest.mark.parametrize("name", ["deepscaler", pytest.param("dapo_minerva", marks=pytest.mark.slow)])
def test_a_pool_needs_no_self_test_for_a_verifier_that_demands_a_form(name: str):
    with VerifierPool(f"fastgrpo.rewards:{name}", 1, timeout_s=5, memory_limit_gib=2) as pool:
        (right, wrong) = pool.score([(RESPONSES[name]("42"), "42"), (RESPONSES[name]("41"), "42")])
    assert right.correct and not wrong.correct


@pytest.mark.parametrize("name", ["deepscaler", "math_verify"])
def test_the_pool_refuses_a_verifier_that_judges_one_known_answer_wrongly(name: str):
    spoilt = [*self_test_of(verifier(name)), ("It is \\boxed{1}.", "1", "unformatted")]
    with pytest.raises(RuntimeError, match="needed unformatted"):
        VerifierPool(f"fastgrpo.rewards:{name}", 1, timeout_s=5, memory_limit_gib=2, self_test=spoilt)


@pytest.mark.parametrize(
    "verifier, demands",
    [
        (strict_boxed, True),
        (mathd_or_sympy, True),
        (math_verify_strict, True),
        (format_penalty, True),
        (simplerl_mix, False),
        (math_verify, False),
        (dapo_minerva, False),
        (prime_union, False),
        (lambda response, answer: True, None),
        (None, None),
    ],
)
def test_whether_a_verifier_demands_a_box_is_seen_of_its_known_answers_and_of_its_verdicts(verifier, demands):
    assert demands_box(verifier) is demands
    if demands is not None:
        unboxed = ("Six times seven: the answer is 42.", "Six times seven.\nAnswer: 42")
        assert any(verifier(response, "42") is True for response in unboxed) is not demands
