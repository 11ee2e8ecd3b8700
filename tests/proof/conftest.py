import pytest
import torch

from fastgrpo.config import ParallelConfig
from fastgrpo.ranks import Ranks


@pytest.fixture
def ranks():
    """This process alone."""
    yield Ranks.connect(torch.device("cpu"), ParallelConfig(timeout_s=60))
    torch.distributed.destroy_process_group()
