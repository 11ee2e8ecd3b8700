import pytest

from fastgrpo.rewards.grading.latex_text import MAX_DEPTH, TooDeep, plain_text


@pytest.mark.parametrize(
    "latex, text",
    [
        ("\\frac{1}{2}", " 1/2"),
        ("\\frac12", " 1/2"),
        ("7\\dfrac{3}{4}", "7 3/4"),
        ("\\frac{1+x}{2}", " ⟮1+x⟯/2"),
        ("\\frac{1}{\\frac{2}{3}}", " 1/⟮2/3⟯"),
        ("\\frac{9}{b-5} .", " 9/⟮b-5.⟯"),
        ("\\frac{9}{b-5}.5", " 9/⟮b-5⟯.5"),
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
        ("\\sech(2)", "sech(2)"),
        ("\\abs{-5}", "abs-5"),
        ("\\floor{5.5}", "floor5.5"),
        ("3\\lor 4", "3lor4"),
        ("3\\sp2", "3sp2"),
        ("\\overset{2}{3}", "overset23"),
        ("{\\bf 1}+\\boldsymbol{\\color{red}2}", "1+2"),
        ("\\textcolor[rgb]{1,0,0}{1}\\hspace*{1cm}\\phantom{0}\\tag{1}", "1"),
        ("\\dbinom{5}{2}", "binom⟮5;2⟯"),
        ("7\\mbox{ pounds}", "7 "),
        ("\\mbox{pounds}", "pounds"),
        ("1\\\\[2pt]2", "1\n2"),
        ("\\begin{aligned}x&=1\\end{aligned}", "x=1"),
        ("\\begin{array}{cc}1&2\\end{array}", "[1,2]"),
        ("\\begin{vmatrix}1\\end{vmatrix}", "|1|"),
        ("x\\oplus\\RR", "x⊕RR"),
        ("\\gcd(1)\\overline{3}\\textonehalf", "gcd(1)overline(3)textonehalf"),
        ("7~\\text{cm}", "7 cm"),
        ("a}b", "ab"),
        ("\\frac", " ⟮⟯/⟮⟯"),
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
