import pytest

from fastgrpo.rewards.grading.sympy_grader import equal_by_sympy, items_of, normalised


@pytest.mark.parametrize(
    "raw, expected",
    [
        ("\\text{Evelyn}", "evelyn"),
        ("\\text{Friday}", "fri"),
        ("5 cm", "5"),
        ("5 miles^2", "5"),
        ("30 degrees", "30"),
        ("90^\\circ", "90"),
        ("10\\%", "10"),
        ("\\$1,234", "1234"),
        ("3 million", "3*10^6"),
        ("1 or 2", "1,2"),
        ("{7}", "7"),
        ("1,\\!000", "1000"),
        ("42.0", "42"),
        ("2.99999999", "3"),
        ("2.9999", "2.9999"),
        ("\\frac{1}{2}", "1/2"),
        ("7\\frac{3}{4}", "⟮7+3/4⟯"),
        ("-7 3/4", "-⟮7+3/4⟯"),
        ("- 3", "-3"),
        ("12,34", "12,34"),
        ("12345678901234567891", "12345678901234567891"),
        ("1e3", "1000"),
        ("nan", "nan"),
    ],
)
def test_normalisation(raw: str, expected: str):
    assert normalised(raw) == expected


def test_items_are_those_of_one_pair_of_brackets():
    assert items_of("(1,2,3]") == ["1", "2", "3"]
    assert items_of("(1,234,5)") == ["1234", "5"]
    assert items_of("(1,2)u(3,4)") == ["(1,2)u(3,4)"]
    assert items_of("1,2") == ["1,2"]


@pytest.mark.parametrize(
    "given, answer",
    [
        ("x+1", "1+x"),
        ("(x+1)(x-1)", "x^2-1"),
        ("\\frac{1+\\sqrt{5}}{2}", "\\frac{\\sqrt{5}+1}{2}"),
        ("\\frac{\\sqrt{3}}{3}", "\\frac{1}{\\sqrt{3}}"),
        ("\\sqrt{8}", "2\\sqrt{2}"),
        ("0.25", "\\frac{1}{4}"),
        ("(2,\\frac{4}{2}+1)", "(2, 3.0+0)"),
        ("\\frac{\\pi}{6}", "\\pi/6"),
        ("-7\\frac{3}{4}", "-\\frac{31}{4}"),
        ("12345678901234567890", "12,345,678,901,234,567,890"),
    ],
)
def test_equal_values_are_equal(given: str, answer: str):
    assert equal_by_sympy(given, answer)


@pytest.mark.parametrize(
    "given, answer, equal",
    [
        ("5.9999999", "6", False),  # as floats they are a little more than 1e-7 apart
        ("8.9999999", "9", True),
        ("3.00000005", "3", True),
        ("12345678901234567890.5", "12345678901234567890", False),
        ("９.９", "9.9", True),
        ("[\\frac{1+x}{2}, 3\\frac{1}{2}]", "[0.5+\\frac{x}{2}, 7/2]", True),
        ("3\\frac{1}{2}.", "3\\frac{1}{2}", True),
        ("1\\\\2x", "2x", False),
        ("{1}+{2x}", "1+2x", True),
        ("\\text{east} \\text{west}", "\\text{east}", False),
    ],
)
def test_decimals_near_integers_other_digits_and_brackets(given: str, answer: str, equal: bool):
    assert equal_by_sympy(given, answer) is equal


@pytest.mark.parametrize(
    "given, answer",
    [
        ("\\frac{2}{4}", "\\frac{1}{2}"),  # unreduced
        ("2+2", "4"),  # an integer must be written as one
        ("4", "2+2"),
        ("x^{10}", "x^{5}x^{5}"),  # powers in braces are not evaluated
        ("2^10", "1024"),
        ("abc", "bca"),  # three unknown letters
        ("(1,2)", "[1,2]"),
        ("(1,2)", "(1,2,3)"),
        ("(2,1)", "(1,2)"),
        ("\\frac{1+x}{2}", "1+\\frac{x}{2}"),
        ("\\sqrt[3]{2}", "\\sqrt{2}"),
        ("12345678901234567890", "12345678901234567891"),
        ("-7\\frac{3}{4}", "-\\frac{25}{4}"),
        ("", "1"),
        ("0", "6.67e-11"),
        ("9.1e-31", "1.6e-19"),
        ("0.00000001", "0"),
        ("", "day"),
        ("hour", "second"),
        ("1/0", "1/2"),
    ],
)
def test_everything_else_is_wrong(given: str, answer: str):
    assert not equal_by_sympy(given, answer)


def test_an_answer_of_more_than_1000_characters_is_equal_only_as_a_text():
    long = "1+" * 600 + "1"
    assert equal_by_sympy(long, long)
    assert not equal_by_sympy(long + "+0", long)
