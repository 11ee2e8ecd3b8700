import pytest

from fastgrpo.rewards import math_verify, math_verify_strict


def boxed(answer: str) -> str:
    return f"\\boxed{{{answer}}}"


@pytest.mark.parametrize(
    "given, answer",
    [
        ("42", "42"),
        ("42", "\\boxed{42}"),
        ("{42}", "42"),
        ("0.5", "\\frac12"),
        ("0.333333", "\\frac13"),
        ("1.414214", "\\sqrt2"),
        ("\\frac123", "\\frac{3}{2}"),
        ("25\\%", "\\frac14"),
        ("39\\text{ percent}", "39\\%"),
        ("x=3", "3"),
        ("3", "x=3"),
        ("(x,y)=(1,2)", "(1,2)"),
        ("f(x)=2x", "2x"),
        ("y=2x+1", "2x-y+1=0"),
        ("3>x", "x<3"),
        ("(3,\\infty)", "x>3"),
        ("2,1", "\\{1,2\\}"),
        ("(1, \\frac{2}{4})", "(1,0.5)"),
        ("(-\\infty,3]\\cup[4,\\infty)", "(-\\infty, 3] \\cup [4, \\infty)"),
        ("1+\\sqrt{19},1-\\sqrt{19}", "1\\pm\\sqrt{19}"),
        ("\\begin{pmatrix}\\frac12\\\\2\\end{pmatrix}", "\\begin{pmatrix}0.5\\\\2\\end{pmatrix}"),
        ("7\\mathrm{cm}", "7 \\text{ cm}"),
        ("90^{\\circ}", "90^\\circ"),
        ("\\$5", "\\$5"),
        ("\\mathrm{e}^2", "e^2"),
        ("east", "\\text{east}"),
        ("\\text{(B)}", "B"),
        ("7:30 \\text{ p.m.}", "7:30\\text{p.m.}"),
        ("312_5", "312_5"),
        ("1{,}234", "1234"),
        ("\\sin 2x", "2\\sin x\\cos x"),
        ("x=1, y=2", "x=1,y=2"),
        ("10^{-100}", "\\frac{1}{10^{100}}"),
    ],
)
def test_equal_answers_in_one_box_are_right(given: str, answer: str):
    assert math_verify_strict(f"Let me see: {boxed(given)}.", answer)


@pytest.mark.parametrize(
    "given, answer",
    [
        ("41", "42"),
        ("\\frac{1}{3001!}", "\\frac{1}{3003!}"),
        ("\\frac{\\pi}{10^{20}}", "\\frac{2\\pi}{10^{20}}"),
        ("(\\frac{1}{3001!},1)", "(\\frac{1}{3003!},1)"),
        ("x=\\frac{1}{3001!}", "x=\\frac{1}{3003!}"),
        ("x+\\frac{1}{3001!}", "x+\\frac{1}{3003!}"),
        ("0.0000012", "0.0000013"),
        ("1.414", "\\sqrt2"),
        ("25\\%", "25"),
        ("5\\text{ km}", "5\\text{ m}"),
        ("5\\text{ km}", "5"),
        ("5", "5\\text{ km}"),
        ("5\\text{ cm}^2", "5\\text{ cm}^3"),
        ("\\$5", "5"),
        ("7:30\\text{ am}", "7:30\\text{ pm}"),
        ("7:30", "7:30\\text{ pm}"),
        ("1:2", "\\frac12"),
        ("312_5", "312"),
        ("\\neq 7", "7"),
        ("8=7", "7"),
        ("x=8=7", "7"),
        ("ABC", "CBA"),
        ("(4,3)", "\\{3,4\\}"),
        ("\\{3,4\\}", "(3,4)"),
        ("7\\text{ (not 8)}", "7"),
        ("7,8", "7"),
        ("\\text{There are } 7 \\text{ of them}", "7"),
        ("", "42"),
        ("42", ""),
    ],
)
def test_other_answers_are_wrong(given: str, answer: str):
    assert not math_verify_strict(f"Let me see: {boxed(given)}.", answer)


@pytest.mark.parametrize(
    "response",
    [
        "First $\\boxed{15}$. No: $\\boxed{",
        "First $\\boxed{15}$. No: $\\boxed{}$",
        "First $\\boxed{15}$. No: $\\boxed{ }$",
        "First $\\boxed{15}$. No: $\\boxed 16$",
        "First $\\boxed{15}$. No: $\\boxed{\\text{none}}$",
        "The final answer is $15$. I hope it is correct.",
        "15",
        "",
    ],
)
def test_only_what_is_in_the_last_closed_box_counts(response: str):
    assert not math_verify_strict(response, "15")


def test_an_answer_of_more_than_1000_characters_equals_only_the_same_text():
    long = "1+" * 600 + "1"
    assert math_verify_strict(boxed(long), long)
    assert not math_verify_strict(boxed(long + "+0"), long)


def test_it_accepts_less_than_the_library_and_more_than_texts():
    assert math_verify(boxed("5\\text{ km}"), "5") and not math_verify_strict(boxed("5\\text{ km}"), "5")
    assert math_verify_strict(boxed("\\frac{2}{4}"), "0.5")


READ_PAST = [
    ("\\pi(R^2-r^2)", "0"),
    ("R^2-r^2", "0"),
    ("\\pi R^2", "\\pi r^2"),
    ("T-t", "0"),
    ("f(N)", "f(n)"),
    ("\\Gamma", "\\gamma"),
    ("5\\mathrm{i}", "5"),
    ("3+4\\mathrm{i}", "7"),
    ("2\\mathrm{e}", "2"),
    ("5\\text{i}", "5"),
    ("5\\text{7}", "5"),
    ("5\\text{.7}", "5"),
    ("5\\text{/7}", "5"),
    ("5\\text{ and 7}", "5"),
    ("1\\text{0}", "1"),
    ("5\\text{‰}", "5"),
    ("5m", "5"),
    ("5 s", "5 m"),
    ("3 h", "3 s"),
    ("5 \\mathit{km}", "5"),
    ("5\\mathit{cm}", "5\\mathit{km}"),
    ("5\\text{ cm}^{-1}", "5\\text{ cm}"),
    ("5\\text{ cm}^{\\text{2}}", "5\\text{ cm}"),
    ("5\\text{ cm}\\textsuperscript{2}", "5\\text{ cm}"),
    ("5\\text{ cm2}", "5\\text{ cm3}"),
    ("5\\text{ cm^2}", "5\\text{ cm^3}"),
    ("5\\text{ m/s}", "5\\text{ s/m}"),
    ("5\\text{ m/s}", "5\\text{ m s}"),
    ("5\\text{ km/h}", "5\\text{ h/km}"),
    ("5\\text{ MW}", "5\\text{ mW}"),
    ("5\\text{ ms}", "5\\text{ m}"),
    ("f'(x)", "f(x)"),
    ("f'(2)", "f(2)"),
    ("x'", "x"),
    ("5'", "5''"),
    ("5'", "5"),
    ("A^T", "A"),
    ("2^{T}", "2"),
    ("a^{T}+1", "a+1"),
    ("5\\ldots", "5"),
    ("0.12\\ldots", "0.12"),
    ("1,2,\\ldots,100", "1,2,100"),
    ("1+2+\\ldots+10", "13"),
    ("\\{1,2,\\ldots\\}", "\\{1,2\\}"),
    ("\\phantom{5}", "5"),
    ("\\phantom{0}", "0"),
    ("12 3", "123"),
    ("1 2", "12"),
    ("3!!", "720"),
    ("[2,1]", "(2,1)"),
    ("[5]", "5"),
    ("x^2|_{x=7}", "x^2"),
    ("1,1,2", "1,2"),
    ("5\\text{ km}", "5\\text{ m}"),
]


def test_what_math_verify_reads_past_is_wrong():
    assert [pair for pair in READ_PAST if math_verify_strict(boxed(pair[0]), pair[1])] == []
