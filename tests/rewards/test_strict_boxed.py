import pytest

from fastgrpo.rewards import strict_boxed


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("\\boxed{42}", "42"),
        ("so it is \\boxed{42}. Done!\n", "42"),
        ("\\boxed{41} or rather \\boxed{42}", "42"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{\\boxed{42}}", "42"),
        ("\\boxed{-7}", "-7"),
        ("\\boxed{}", ""),
        ("\\boxed{٤٢}", "٤٢"),
    ],
)
def test_the_last_box_with_exactly_the_answer_is_right(response: str, answer: str) -> None:
    assert strict_boxed(response, answer)


@pytest.mark.parametrize(
    "response",
    [
        "",
        "42",
        "the answer is 42",
        "\\boxed{41}",
        "\\boxed{ 42 }",
        "\\boxed{42.}",
        "\\boxed{\\text{42}}",
        "\\boxed 42",
        "\\boxed {42}",
        "\\fbox{42}",
        "boxed{42}",
        "\\boxed{42",
        "\\boxed{{42}",
        "\\boxed{42} and then \\boxed{41}",
    ],
)
def test_anything_else_is_wrong(response: str) -> None:
    assert not strict_boxed(response, "42")


def test_a_backslash_does_not_escape_a_brace() -> None:
    assert strict_boxed("\\boxed{42\\}", "42\\")
    assert not strict_boxed("\\boxed{\\{1}", "\\{1")


def test_thousands_separators_are_not_removed() -> None:
    assert not strict_boxed("\\boxed{1,234}", "1234")


def test_an_unterminated_last_box_is_wrong_whatever_stands_before_it() -> None:
    assert not strict_boxed("\\boxed{42} hence \\boxed{42", "42")


def test_a_box_that_starts_before_the_window_is_wrong() -> None:
    box = "\\boxed{42}"
    assert strict_boxed("x" * 500 + box + "." * (100 - len(box)), "42")
    assert not strict_boxed("x" * 500 + box + "." * (101 - len(box)), "42")


def test_an_answer_that_does_not_fit_into_the_window_is_wrong() -> None:
    fits = "7" * (100 - len("\\boxed{}"))
    assert strict_boxed(f"\\boxed{{{fits}}}", fits)
    assert not strict_boxed(f"\\boxed{{{fits}7}}", fits + "7")


def test_an_earlier_box_within_the_window_does_not_count() -> None:
    assert not strict_boxed("\\boxed{42}, no: \\boxed{43}", "42")
