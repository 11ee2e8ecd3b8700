"""What an environment must have in which fastgrpo runs: of each that the Makefile makes, whatever else it is for."""

from importlib.metadata import requires, version

import pytest
from packaging.requirements import Requirement

from fastgrpo.rewards import VerifierPool
from tests.rewards.demanded_forms import RESPONSES


def test_all_that_the_package_requires_is_there():
    needed = [r for r in map(Requirement, requires("fastgrpo") or []) if r.marker is None or r.marker.evaluate()]
    assert len(needed) > 10
    assert [str(r) for r in needed if not r.specifier.contains(version(r.name), prereleases=True)] == []


@pytest.mark.parametrize("name", RESPONSES)
def test_each_verifier_starts_in_a_process_and_judges(name: str):
    with VerifierPool(f"fastgrpo.rewards:{name}", 1, timeout_s=10, memory_limit_gib=4) as pool:
        (verdict,) = pool.score([(RESPONSES[name]("42"), "42")])
    assert verdict.correct and not verdict.failure
