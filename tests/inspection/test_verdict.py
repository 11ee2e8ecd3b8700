"""Whether a run could learn, in words."""

from dataclasses import replace

import pytest

from fastgrpo.inspection.verdict import finding_of, interval
from tests.algorithm.test_no_signal import NOTHING_RIGHT, SOME_RIGHT, STRICT


def finding(counts, about=STRICT, compares_groups=True):
    return finding_of(counts, about, compares_groups, prompts_per_step=64)


def test_signal_in_half_of_the_groups_can_be_learnt_from_with_the_expected_number():
    found = finding(SOME_RIGHT)
    assert found.can_learn == "yes" and found.causes == []
    assert found.headline == (
        "It can learn: 6 of 12 groups have signal at temperature 1 (95 % interval: 25 to 75 %); expect about 32 of a "
        "step's 64 groups to teach"
    )


def test_no_group_with_signal_is_a_no_with_its_causes():
    found = finding(replace(NOTHING_RIGHT, boxed=0))
    assert found.can_learn == "no" and [c.name for c in found.causes] == ["has_no_box"]
    assert found.headline.startswith("It cannot learn as it is: 0 of 12 groups have signal")


def test_signal_in_one_of_many_groups_is_hardly_enough():
    assert finding(replace(NOTHING_RIGHT, with_signal=1, right=1, rewards_differ=True)).can_learn == "hardly"


def test_a_run_that_can_learn_hears_only_of_what_would_help_it():
    cut = replace(SOME_RIGHT, cut=60)
    assert [c.name for c in finding(cut).causes] == ["is_cut"]
    few_boxes = replace(SOME_RIGHT, boxed=2, right=2)
    assert finding(few_boxes).causes == []


def test_where_advantages_are_made_over_the_batch_groups_that_differ_are_enough():
    agree = replace(NOTHING_RIGHT, right=24, rewards_differ=True)
    assert finding(agree, compares_groups=False).can_learn == "yes"
    assert finding(agree).can_learn == "no" and finding(NOTHING_RIGHT, compares_groups=False).can_learn == "no"


@pytest.mark.parametrize("hits, count, low, high", [(0, 12, 0.0, 0.2425), (6, 12, 0.2538, 0.7462), (12, 12, 0.7575, 1)])
def test_the_interval_is_wilsons(hits, count, low, high):
    assert interval(hits, count) == pytest.approx((low, high), abs=1e-4)


def test_without_a_trial_a_share_may_be_anything():
    assert interval(0, 0) == (0.0, 1.0)
