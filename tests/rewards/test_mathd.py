import pytest

from fastgrpo.rewards.grading.mathd import equal_by_mathd, normalised


@pytest.mark.parametrize(
    "raw, expected",
    [
        ("\\frac12", "\\frac{1}{2}"),
        ("\\frac1{72}", "\\frac{1}{72}"),
        ("\\frac{72}1", "\\frac{72}1"),
        ("\\tfrac{1}{2}", "\\frac{1}{2}"),
        ("\\dfrac{1}{2}", "\\frac{1}{2}"),
        ("\\left(1\\right)", "(1)"),
        ("45^{\\circ}", "45"),
        ("45^\\circ", "45"),
        (".7", "0.7"),
        (".5", "\\frac{1}{2}"),
        ("3/4", "\\frac{3}{4}"),
        ("-3/4", "\\frac{-3}{4}"),
        ("03/4", "03/4"),
        ("3/4/5", "3/4/5"),
        ("x=5", "5"),
        ("k = 5", "5"),
        ("abc=5", "abc=5"),
        ("\\text{42}", "42"),
        ("5\\text{ cm}", "5"),
        ("10\\%", "10"),
        ("\\$10", "10"),
        ("\\sqrt2", "\\sqrt{2}"),
        ("1\\!000", "1000"),
        ("", ""),
        ("\\frac", "\\frac"),
        ("\\sqrt", "\\sqrt"),
    ],
)
def test_normalisation_as_published(raw: str, expected: str):
    assert normalised(raw) == expected


def test_equality_is_of_texts_and_not_of_values():
    assert equal_by_mathd("0.5", "\\frac{1}{2}")
    assert not equal_by_mathd("0.25", "\\frac{1}{4}")
    assert not equal_by_mathd("2x", "x2")
