"""Tests on a device whose kernels do nothing: there an assertion says nothing, and only errors count.

``pytest -p tests.fake_gpu.pytest_plugin``
"""

import os
from collections.abc import Generator
from typing import Any

import pytest

# Every tensor in new memory, which is 0: what tests make of values is then at least the same each time.
os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"

SIZED_BY_VALUES = {
    "test_what_stands_outside_the_mask_does_not_matter[gpu]",
    "test_nan_of_a_broken_model_stays_nan[gpu]",
    "test_from_rewards_to_gradients_is_one_call[gpu]",
    "test_forbidden_tokens_have_no_probability_and_no_gradient[gpu]",
}
"""Tests that make tensors as large as a value on the device says, or look up what it names."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.name in SIZED_BY_VALUES:
            item.add_marker(pytest.mark.skip(reason="its sizes are values, which mean nothing on the fake device"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    report = yield
    if call.when == "call" and call.excinfo is not None and _is_about_values(call.excinfo):
        report.outcome, report.wasxfail = "skipped", "values mean nothing on the fake device"
    return report


def _is_about_values(error: pytest.ExceptionInfo[BaseException]) -> bool:
    """A test's own assertion, or torch's of near values; not of our code, nor of a device, a dtype or a shape."""
    raised_in = str(error.traceback[-1].path)
    is_ours = "/tests/" in raised_in or "/torch/testing/" in raised_in
    return error.errisinstance(AssertionError) and is_ours and "The values for attribute" not in str(error.value)
