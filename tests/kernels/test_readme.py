"""kernels/README.md: what needs no peer is run here in the page's order, signatures are those of the code."""

import inspect
import re

import fastgrpo_kernels
import pytest

from tests.kernels.readme import PAGE, blocks

ELSEWHERE = {"From TRL", "From verl", "From OpenRLHF", "From Hugging Face's hub"}
"""Run in the environments of those: tests/peers/test_adapter_*.py and test_hub.py."""


def test_the_blocks_run_one_after_the_other():
    namespace: dict[str, object] = {}
    ran = [exec(code, namespace) for heading, code in blocks() if heading not in ELSEWHERE]
    assert len(ran) == 4 and len(blocks()) == len(ran) + len(ELSEWHERE)
    assert namespace["hidden"].grad_fn is not None and namespace["model"].lm_head.weight.grad.norm() > 0


@pytest.mark.parametrize("name", [n for n in fastgrpo_kernels.__all__ if n[0].islower()])
def test_every_function_of_the_package_is_on_the_page(name):
    assert f"`{name}(" in PAGE or f"\n{name}(" in PAGE or f"`{name}`" in PAGE


@pytest.mark.parametrize(
    "name",
    [
        "linear_grpo",
        "linear_logprobs",
        "linear_logits",
        "logprobs_from_logits",
        "grpo_loss",
        "group_advantages",
        "decode_attention",
    ],
)
def test_the_signatures_are_those_of_the_code(name):
    shown = re.search(rf"^{name}\((.*?)\) ->", PAGE, re.DOTALL | re.MULTILINE)[1]
    namespace: dict[str, object] = {}
    exec(f"def shown({shown}\n): pass", namespace)
    got = inspect.signature(namespace["shown"]).parameters
    want = inspect.signature(getattr(fastgrpo_kernels, name)).parameters
    assert [(p.name, p.kind, p.default) for p in got.values()] == [(p.name, p.kind, p.default) for p in want.values()]
