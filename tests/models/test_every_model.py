"""docs/models.md says of every type of causal LM whether it is right or refused, and there is no third thing."""

import contextlib

import pytest

from tests.models.every_model import TYPES, Verdict, pass_the_door, verdict_on
from tests.models.page import PAGE, row, table

FEW = ("llama", "gemma3", "qwen3_next", "bloom", "bert", "opt")


INVALID = ("gemma4_assistant", "qwen4_exp_text")
"""Their default configurations cannot even be made."""


def written() -> str:
    return PAGE.read_text()


@pytest.mark.parametrize("name", FEW)
def test_the_page_says_of_a_type_what_the_code_does(name):
    assert row(name, verdict_on(name)) in written()


DOORS = {
    "llama": ("auto", "builtin"),
    "gemma2": ("auto", "builtin"),
    "qwen3_moe": ("auto", "builtin"),
    "bloom": ("auto", "vllm"),
    "qwen3_next": ("sdpa", "vllm"),
    "mamba": ("eager", "vllm"),
    "deepseek_v32": ("eager", "vllm"),
}


@pytest.mark.parametrize("name", DOORS)
def test_what_the_page_calls_right_gets_through_the_door(name, tmp_path):
    assert "right in small" in pass_the_door(name, tmp_path, *DOORS[name])


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["auto", "eager"])
def test_what_the_page_does_not_call_right_is_refused_at_the_door_in_words(verdicts, attention, tmp_path):
    for name in (n for n, v in verdicts.items() if v.outcome == "refused"):
        with pytest.raises(ValueError, match=r"\w+ \w+ \w+"):
            pass_the_door(name, tmp_path, attention, "vllm")


@pytest.mark.slow
def test_what_has_no_tiny_copy_is_refused_in_words_or_left_to_its_weights(verdicts, tmp_path):
    for name in (n for n, v in verdicts.items() if v.outcome == "not built" and n not in INVALID):
        with contextlib.suppress(ValueError):
            assert "no tiny copy" in pass_the_door(name, tmp_path, "auto", "vllm")


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
