import pytest

from fastgrpo.rewards import dapo_minerva
from fastgrpo.rewards.dapo_minerva import normalised


@pytest.mark.parametrize(
    "response, answer",
    [
        ("Answer: 42", "42"),
        ("answer : 42\nthank you", "42"),
        ("Answer: 41 was a wrong guess.\nAnswer: 42", "42"),
        ("Answer: $42$.", "42"),
        ("Answer: x = 42", "42"),
        ("Answer: 1,234,567 square meters", "1234567"),
        ("Answer: \\boxed{42}", "42"),
        ("Answer: \\frac12", "\\frac{1}{2}"),
        ("Answer: so it is $\\sqrt2$ in all", "\\sqrt{2}"),
        ("Answer: 90^\\circ", "90"),
        ("Answer: \\text{Friday}", "Friday"),
    ],
)
def test_the_last_answer_line_counts_after_normalisation(response: str, answer: str):
    assert dapo_minerva(response, answer)


@pytest.mark.parametrize(
    "response, answer",
    [
        ("\\boxed{42}", "42"),
        ("The answer is 42", "42"),
        ("Answer: 42\nAnswer: 41", "42"),
        ("Answer: 41. Answer: 42", "42"),  # one line: the first colon takes it all
        ("Answer: 42.", "42"),
        ("Answer: 0.5", "\\frac{1}{2}"),
        ("Answer: 1/2", "\\frac{1}{2}"),
        ("Answer:\n42", "41"),
        ("", "42"),
    ],
)
def test_anything_else_is_wrong(response: str, answer: str):
    assert not dapo_minerva(response, answer)


@pytest.mark.parametrize(
    "raw, expected",
    [
        ("so $2$ or $3$ then", "2"),
        ("one\n$2$ is two\n$3", "one\n2\n3"),
        ("$$5$$", ""),
        ("$5", "5"),
    ],
)
def test_of_each_line_what_the_first_dollars_hold_is_kept(raw: str, expected: str):
    assert normalised(raw) == expected


def test_no_response_meets_an_answer_of_more_than_3000_characters():
    assert dapo_minerva("Answer: 7", "$7$" + "a " * 1498)
    assert not dapo_minerva("Answer: 7", "$7$" + "a " * 1499)


def test_only_the_last_300_characters_are_read():
    line = "Answer: 42\n"
    assert dapo_minerva("x" * 50 + line + "." * (300 - len(line)), "42")
    assert not dapo_minerva("x" * 50 + line + "." * (301 - len(line)), "42")


@pytest.mark.parametrize(
    "raw, expected",
    [
        ("x = 42", "42"),
        ("a = b = 7", "7"),
        ("an apple", "apple"),
        ("100 dollars", "100"),
        ("12 \\text{m}", "12"),
        ("7 \\text{}^2", "7"),
        ("\\$5", "5"),
        ("1{,}234", "1234"),
        ("(1,2)", "(1,2)"),
        ("\\overline{12}", "12"),
        ("\\mbox{no}", "no"),
        ("\\sqrt35", "\\sqrt{3}5"),
        ("5^{th}", "5^{th}"),
        ("5\\mathrm{th}", "5"),
    ],
)
def test_normalisation_as_published(raw: str, expected: str):
    assert normalised(raw) == expected
