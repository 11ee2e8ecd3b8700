import pytest

from fastgrpo.rewards import deepscaler, math_verify, prime_union


@pytest.mark.parametrize(
    "response, answer, by_deepscaler, by_math_verify",
    [
        ("</think>\\boxed{42}", "42", True, True),
        ("</think>\\boxed{7 3/4}", "\\frac{31}{4}", True, False),
        ("It is \\boxed{\\frac{2}{4}}.", "\\frac{1}{2}", False, True),
        ("</think>\\boxed{41}", "42", False, False),
    ],
)
def test_it_accepts_what_either_half_accepts(response: str, answer: str, by_deepscaler: bool, by_math_verify: bool):
    assert deepscaler(response, answer) is by_deepscaler
    assert math_verify(response, answer) is by_math_verify
    assert prime_union(response, answer) is (by_deepscaler or by_math_verify)
