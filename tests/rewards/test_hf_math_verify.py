import logging
import threading

import pytest
import sympy
from math_verify import parse, verify
from math_verify.parser import ExprExtractionConfig, LatexExtractionConfig

from fastgrpo.rewards import math_verify
from fastgrpo.rewards.grading.bounds import readable, small_enough
from fastgrpo.rewards.hf_math_verify import equal_as_boxes
from tests.rewards import labelled
from tests.rewards.demanded_forms import in_a_box
from tests.rewards.triples import triples


def by_the_library(response: str, answer: str) -> bool:
    """As verl's reward calls it: gold in a box, plain expressions before LaTeX."""
    gold = parse(f"\\boxed{{{answer}}}", [LatexExtractionConfig()])
    return verify(gold, parse(response, [ExprExtractionConfig(), LatexExtractionConfig()]))


@pytest.fixture(autouse=True)
def quiet():
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)


def test_verdicts_are_the_librarys_on_labelled_responses():
    cases = labelled.cases()
    assert [math_verify(r, a) for r, a, _ in cases] == [by_the_library(r, a) for r, a, _ in cases]


def test_verdicts_are_the_librarys_on_generated_answers():
    items = [(in_a_box(f), t.answer) for t in triples(50, seed=3) for f in (t.equivalent, t.different)]
    assert [math_verify(*item) for item in items] == [by_the_library(*item) for item in items]


@pytest.mark.parametrize(
    "response, answer, expected",
    [
        ("It is \\boxed{42}.", "42", True),
        ("It is \\boxed{42}.", "\\boxed{42}", True),
        ("The final answer is $\\frac{1}{2}$. I hope it is correct.", "0.5", True),
        ("The answer is 1/2", "\\frac{1}{2}", True),
        ("thus 3*4/6", "2", True),
        ("thus 50%", "50\\%", True),
        ("It is 1,234.", "1234", True),
        ("It is \\boxed{1,2} ", "\\{2,1\\}", True),
        ("It is \\boxed{0.333333}", "\\frac{1}{3}", True),
        ("It is \\boxed{0.333}", "\\frac{1}{3}", False),
        ("It is \\boxed{(2,1)}", "(1,2)", False),
        ("It is \\boxed{42}. No, \\boxed{41}, that is what it must be after all", "42", False),
        ("", "42", False),
        ("no number", "42", False),
    ],
)
def test_what_is_found_and_compared(response: str, answer: str, expected: bool):
    assert math_verify(response, answer) is expected


def test_it_works_off_the_main_thread():
    """Where the library's own timeouts raise."""
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(math_verify("\\boxed{\\frac{2}{4}}", "\\frac{1}{2}")))
    thread.start()
    thread.join()
    assert found == [True]


def test_two_answers_are_put_into_boxes():
    assert equal_as_boxes("\\frac{2}{4}", "0.5")
    assert equal_as_boxes("", "") is equal_as_boxes("\\boxed{}", "\\boxed{}")
    assert equal_as_boxes("1" * 2000, "1" * 2000)
    assert not equal_as_boxes("1" * 2000 + ".0", "1" * 2000)


@pytest.mark.parametrize(
    "latex", ["9^{9^{9^9}}", "9!!!!", "10^{10^{10}}", "99999^{99999}", "(x+1)^{1000}", "\\sum_{n=1}^{10} n"]
)
def test_what_nobody_should_compute_equals_only_the_same_text(latex: str):
    assert math_verify(f"\\boxed{{{latex}}}", latex)
    assert not math_verify(f"\\boxed{{{latex}+1}}", latex)


@pytest.mark.parametrize("latex", ["2^{100}", "10!", "x^{2023}", "(1+\\sqrt{5})^{20}", "\\binom{10}{3}", "100^{1000}"])
def test_what_answers_contain_is_computed(latex: str):
    assert readable(latex)
    assert math_verify(f"\\boxed{{0 + {latex}}}", latex)


@pytest.mark.parametrize("latex", ["1" * 1001, "9" * 300, "{" * 13, "\\binom{100000}{5}", "\\gcd(2^9,4)"])
def test_what_latex2sympy_must_not_see_is_refused(latex: str):
    assert not readable(latex)


def test_sizes_are_those_of_the_computed_value():
    x = sympy.Symbol("x")
    nine = sympy.Pow(9, 9, evaluate=False)
    assert small_enough(nine) and small_enough(x**1000) and small_enough(sympy.Matrix([[1, x]]))
    assert not small_enough(sympy.Pow(9, sympy.Pow(9, nine, evaluate=False), evaluate=False))
    assert not small_enough(sympy.factorial(sympy.factorial(9, evaluate=False), evaluate=False))
    assert not small_enough((x + 1) ** 65)
