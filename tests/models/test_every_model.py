"""docs/models.md says of every type of causal LM whether it is right or refused, and there is no third thing."""

import pytest

from tests.models.every_model import TYPES, Verdict, verdict_on
from tests.models.page import PAGE, row, table

FEW = ("llama", "gemma3", "qwen3_next", "bloom", "bert", "opt")


def written() -> str:
    return PAGE.read_text()


@pytest.mark.parametrize("name", FEW)
def test_the_page_says_of_a_type_what_the_code_does(name):
    assert row(name, verdict_on(name)) in written()


@pytest.fixture(scope="module")
def verdicts() -> dict[str, Verdict]:
    return {name: verdict_on(name) for name in TYPES}  # a traceback in any of them fails here


@pytest.mark.slow
def test_the_page_is_what_the_code_says_of_all_types(verdicts):
    assert table(verdicts) in written()


@pytest.mark.slow
def test_at_least_75_types_are_right_and_every_other_one_is_refused_with_a_reason(verdicts):
    assert sum(v.is_right for v in verdicts.values()) >= 75
    assert all(v.reason for v in verdicts.values() if not v.is_right)
