import pytest

from fastgrpo.rewards.grading.latex_text import MAX_DEPTH, TooDeep, plain_text


@pytest.mark.parametrize(
    "latex, text",
    [
        ("\\frac{1}{2}", " 1/2"),
        ("\\frac12", " 1/2"),
        ("7\\dfrac{3}{4}", "7 3/4"),
        ("\\frac{1+x}{2}", " (1+x)/2"),
        ("\\frac{1}{\\frac{2}{3}}", " 1/(2/3)"),
        ("\\frac{\\pi}{2}", " pi/2"),
        ("2\\sqrt{3}", "2sqrt(3)"),
        ("\\sqrt 2", "sqrt(2)"),
        ("\\sqrt\\pi", "sqrt(pi)"),
        ("\\sqrt[3]{2}", "root[3](2)"),
        ("\\sqrt[2]{2}", "sqrt(2)"),
        ("(-\\infty, 3]\\cup[4,\\infty)", "(-inf, 3]U[4,inf)"),
        ("3 \\cdot 4\\times5", "3 *4*5"),
        ("\\text{ cm}", " cm"),
        ("\\left\\{1,2\\right\\}", "1,2"),
        ("\\alpha", "α"),
        ("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "[1,2;3,4]"),
        ("\\nosuchcommand{1}", "nosuchcommand1"),
        ("a}b", "a"),
        ("\\frac", " ()/()"),
        ("\\", ""),
        ("\\sqrt", "sqrt()"),
    ],
)
def test_latex_as_plain_text(latex: str, text: str):
    assert plain_text(latex) == text


@pytest.mark.parametrize("nested", ["{" * 100_000, "\\frac{" * 1000, "\\sqrt" * 5000, "\\frac\\frac" * 5000])
def test_what_nests_deeper_than_any_answer_is_refused(nested: str):
    with pytest.raises(TooDeep):
        plain_text(nested)


def test_thirty_levels_are_read():
    levels = MAX_DEPTH - 1
    assert plain_text("{" * levels + "1" + "}" * levels) == "1"
