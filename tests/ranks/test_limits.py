"""How many files a process of a launch may open."""

import resource
from collections.abc import Iterator

import pytest

from fastgrpo.ranks.limits import MOST_OPEN_FILES, allow_open_files


@pytest.fixture
def low_limit() -> Iterator[int]:
    """A login's limit; what the user may have."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
    yield before[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_limit_rises_to_what_the_user_may_have(low_limit, monkeypatch):
    allow_open_files()
    raised = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert raised == (min(low_limit, MOST_OPEN_FILES), low_limit)
    monkeypatch.setattr("fastgrpo.ranks.limits.MOST_OPEN_FILES", 512)
    allow_open_files()  # what is enough stays
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == raised
