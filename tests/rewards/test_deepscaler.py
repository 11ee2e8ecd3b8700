import pytest

from fastgrpo.rewards import deepscaler, mathd_or_sympy


@pytest.mark.parametrize(
    "response, expected",
    [
        ("<think>hm</think> It is \\boxed{42}.", True),
        ("hm</think>\\boxed{42}", True),
        ("\\boxed{42}", False),
        ("<think>\\boxed{42}</think> It is that.", False),
        ("<think>\\boxed{41}</think>\\boxed{42}", True),
        ("<think>a</think>\\boxed{41}</think>\\boxed{42}", False),  # between the first end and the next
        ("</think>\\boxed{41} \\boxed{42}", True),
        ("</think>\\boxed{42} \\boxed{41}", False),
    ],
)
def test_only_the_last_box_after_the_thought_counts(response: str, expected: bool):
    assert deepscaler(response, "42") is expected


@pytest.mark.parametrize(
    "response, answer, expected",
    [
        ("\\boxed{42}", "\\boxed{42}", True),
        ("\\boxed{45^\\circ}", "45", True),  # by mathd
        ("\\boxed{x+1}", "1+x", True),  # by sympy
        ("just 42", "42", False),
        ("\\boxed{42}", "", False),
        ("\\boxed{}", "", False),
        ("\\boxed{42", "42", False),
        ("\\fbox{42}", "42", False),
    ],
)
def test_the_grader_alone_takes_the_last_box_anywhere(response: str, answer: str, expected: bool):
    assert mathd_or_sympy(response, answer) is expected
