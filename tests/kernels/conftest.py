"""The backends: without a GPU the Triton kernels run on CPU tensors, interpreted."""

import pytest
import torch
from fastgrpo_kernels.dispatch import Backend, forced


@pytest.fixture(params=["plain", "native", "gpu"])
def backend(request) -> Backend:
    """The ops run on this backend for the length of the test."""
    with forced(request.param):
        yield request.param


@pytest.fixture
def device(backend: Backend) -> torch.device:
    return torch.device("cuda" if backend == "gpu" and torch.cuda.is_available() else "cpu")
