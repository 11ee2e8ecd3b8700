import pytest

from fastgrpo.rewards import last_boxed
from fastgrpo.rewards.grading.boxes import answer_of


@pytest.mark.parametrize(
    "text, content",
    [
        ("\\boxed{42}", "42"),
        ("\\boxed{41}, no, \\boxed{42}. Done", "42"),
        ("$\\boxed{\\frac{1}{2}}$", "\\frac{1}{2}"),
        ("\\boxed{\\boxed{42}}", "42"),
        ("\\boxed{}", ""),
        ("\\boxed{\\{1\\}}", "\\{1\\}"),
        ("\\boxed{a\nb}", "a\nb"),
    ],
)
def test_the_last_box_is_taken(text: str, content: str):
    assert last_boxed(text) == content


@pytest.mark.parametrize(
    "text", ["", "42", "\\boxed", "\\boxed 42", "\\boxed {42}", "\\fbox{42}", "\\boxed{42", "\\boxed{{42}", "boxed{42}"]
)
def test_there_is_no_box(text: str):
    assert last_boxed(text) is None


@pytest.mark.parametrize("end", ["\\boxed{43", "\\boxed 43"])
def test_a_last_box_that_is_none_hides_the_ones_before_it(end: str):
    assert last_boxed(f"\\boxed{{42}} hence {end}") is None


def test_a_gold_answer_comes_out_of_its_box():
    assert answer_of("\\boxed{204}") == answer_of("204") == "204"
