import pytest

from fastgrpo.rewards import format_penalty, simplerl_mix
from fastgrpo.rewards.grading.qwen_answer import extract_answer, normalised
from fastgrpo.rewards.simplerl_mix import before_stop_words


@pytest.mark.parametrize(
    "response, answer",
    [
        ("a \\boxed{41} b \\boxed{42} c", "42"),
        ("\\boxed{\\frac{1}{2}", "\\frac{1}{2}"),  # a box that never closes is open to the end
        ("$\\boxed 42$", "42"),
        ("The answer is 42.", "42"),
        ("the final answer is: 42.", "42"),
        ("Hence the final answer is $\\frac{1}{2}$. I hope it is correct.", "\\frac{1}{2}"),
        ("first 41, then 1,042", "1042"),
        ("it is -.5", "-.5"),
        ("答案是 42\n\n因为", "42"),
        ("no number", ""),
        ("", ""),
    ],
)
def test_the_answer_is_the_box_then_the_phrase_then_the_last_number(response: str, answer: str):
    assert extract_answer(response) == answer


@pytest.mark.parametrize(
    "raw, expected",
    [
        ("5 \\text{ cm}", "5"),
        ("5 miles", "5"),
        ("10\\%", "10"),
        ("\\$5", "5"),
        ("90^\\circ", "90"),
        ("x = 3", "3"),
        ("x=3", "3"),
        ("k=3", "3"),
        ("forty-two", "42"),
        ("two hundred and five", "205"),
        ("three thousand", "3000"),
        ("two cats", "twocats"),
        ("042", "42"),
        ("3.00", "3"),
        (".5", "0.5"),
        ("\\dfrac12", "\\frac{1}{2}"),
        ("3/4", "\\frac{3}{4}"),
        ("\\sqrt3", "\\sqrt{3}"),
        ("\\begin{bmatrix}1\\end{bmatrix}", "\\begin{pmatrix}1\\end{pmatrix}"),
        ("(-\\infty,\\infty)", "\\mathbb{R}"),
        ("3+4j", "3+4i"),
        ("2\\left(x\\right)", "2(x)"),
    ],
)
def test_normalisation_as_published(raw: str, expected: str):
    assert normalised(raw) == expected


def test_what_stands_after_an_end_mark_or_before_the_assistant_is_not_read():
    assert before_stop_words("It is 42.<|im_end|>\nuser") == "It is 42."
    prompt = "<|im_start|>user\nUse \\boxed{}.<|im_end|>\n<|im_start|>assistant\nIt is 42."
    assert before_stop_words(prompt).endswith("It is 42.")
    assert simplerl_mix("The answer is 42<|endoftext|> or 43", "42")


@pytest.mark.parametrize(
    "response, answer, expected",
    [
        ("\\boxed{0.5}", "\\frac{1}{2}", True),
        ("The answer is 0.5.", "\\frac{1}{2}", True),
        ("7 and then 42", "42", True),
        ("7 and then 43", "42", False),
        ("\\boxed{43} or 42", "42", False),
        ("", "42", False),
    ],
)
def test_the_extracted_answer_is_compared_by_math_verify(response: str, answer: str, expected: bool):
    assert simplerl_mix(response, answer) is expected


@pytest.mark.parametrize(
    "response, expected",
    [
        ("\\boxed{42}", True),
        ("\\boxed{43}", False),
        ("\\boxed{43}, I mean 42", False),
        ("The answer is 42.", "unformatted"),
        ("The answer is 43.", "unformatted"),
        ("\\boxed{42", "unformatted"),
        ("\\boxed 42", "unformatted"),
        ("\\boxed{\\frac{\\sqrt{4}}{2}}", False),
        ("\\boxed{{{{42}}}}", "unformatted"),  # braces nest deeper than the published pattern goes
        ("It is 42.<|im_end|>\\boxed{42}", "unformatted"),
    ],
)
def test_a_response_without_a_closed_box_is_unformatted_right_or_not(response: str, expected: object):
    assert format_penalty(response, "42") == expected
    assert type(format_penalty(response, "42")) is type(expected)
