import pytest

from tests.rewards import labelled
from tests.rewards.demanded_forms import verifier


@pytest.mark.parametrize(
    "name, false_negatives, false_positives",
    [
        ("strict_boxed", 6, 0),
        ("mathd_or_sympy", 0, 0),
        ("deepscaler", 81, 0),  # only two of the right ones have a </think>
        ("dapo_minerva", 83, 0),  # none has a line "Answer:"
        ("math_verify", 0, 2),  # where a box holds a sentence, it goes on to the numbers before the box
        ("math_verify_strict", 0, 0),
        ("simplerl_mix", 0, 0),
        ("format_penalty", 0, 0),
        ("prime_union", 0, 2),
    ],
)
def test_labelled_responses_are_judged_with_so_many_errors(name: str, false_negatives: int, false_positives: int):
    judged = [(verifier(name)(response, answer) is True, right) for response, answer, right in labelled.cases()]
    assert len(judged) == 160
    assert sum(right for _, right in judged) == 83
    assert sum(right and not accepted for accepted, right in judged) == false_negatives
    assert sum(accepted and not right for accepted, right in judged) == false_positives


def test_labelled_responses_without_a_box_are_unformatted():
    found = [verifier("format_penalty")(response, answer) for response, answer, _ in labelled.cases()]
    assert found.count("unformatted") == 3
    assert all("boxed" not in case[0] for case, v in zip(labelled.cases(), found, strict=True) if v == "unformatted")
