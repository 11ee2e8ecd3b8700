"""Expressions that would take long to multiply out are refused before they are."""

import pytest
import sympy

from fastgrpo.rewards.grading.bounds import small_enough

X, Y, Z, W = sympy.symbols("x y z w")


@pytest.mark.parametrize(
    "value", [(1 + X + Y + Z) ** 40, (1 + X) ** 60 * (1 + Y) ** 60, ((1 + X + Y) * (1 + Y + Z) * (1 + Z + W)) ** 9]
)
def test_a_product_of_sums_with_many_monomials_is_refused(value):
    assert not small_enough(value)


@pytest.mark.parametrize("value", [(1 + X) ** 20, (X + Y) ** 3 / (X - Y), (1 + X) * (1 + Y) * (1 + Z), 2**X + sympy.pi])
def test_what_somebody_answers_is_not(value):
    assert small_enough(value)
