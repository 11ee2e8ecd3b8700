"""Why nothing can be learnt: for each cause counts that must name it, and counts near them that must not."""

from dataclasses import replace
from itertools import product

import pytest

from fastgrpo.algorithm.no_signal import Circumstances, causes_of
from fastgrpo.algorithm.signal_counts import SignalCounts

NOTHING_RIGHT = SignalCounts(
    groups=12, with_signal=0, responses=96, right=0, boxed=80, cut=5, ended_at_once=0, failures=0, without_reward=0,
    tokens=9600, rewards_differ=False,
)  # fmt: skip
STRICT = Circumstances(
    reward="strict_boxed", demands_box=True, temperature=1.0, max_response_tokens=256, runs_max_response_tokens=256,
    group_size=8, chat_template=True, asks_for_box=True,
)  # fmt: skip
SOME_RIGHT = replace(NOTHING_RIGHT, with_signal=6, right=20, rewards_differ=True)
UNKNOWN = {"demands_box": None}


def names(counts: dict, about: dict | None = None) -> list[str]:
    found = causes_of(replace(NOTHING_RIGHT, **counts), replace(STRICT, **(about or {})))
    return [cause.name for cause in found]


@pytest.mark.parametrize(
    "name, must, must_not",
    [
        ("reward_fails", ({"failures": 60}, {}), ({"failures": 30}, {})),
        ("no_reward", ({"without_reward": 96}, {}), ({"without_reward": 20}, {})),
        ("ends_at_once", ({"ended_at_once": 90}, {}), ({"ended_at_once": 9}, {})),
        ("has_no_box", ({"boxed": 0}, {}), ({"boxed": 12}, {})),
        ("has_no_box", ({"boxed": 0}, UNKNOWN), ({"boxed": 0}, UNKNOWN | {"asks_for_box": False})),
        ("has_no_box", ({"boxed": 3}, {}), ({"boxed": 0, "right": 9}, {"demands_box": False})),
        ("is_cut", ({"cut": 80}, {}), ({"cut": 40}, {})),
        ("is_right", ({"right": 96}, {}), ({"right": 90}, {})),
        ("is_right", ({"right": 60, "without_reward": 36}, {}), ({"right": 0, "without_reward": 96}, {})),
        ("groups_agree", ({"right": 24, "rewards_differ": True}, {}), ({"right": 24}, {})),
        ("equal_numbers", ({"right": 24}, {}), ({"right": 24, "rewards_differ": True}, {})),
        ("hardly_right", ({"right": 1, "with_signal": 1, "rewards_differ": True}, {}), ({"cut": 96}, {})),
        ("hardly_right", ({}, {}), ({"boxed": 0}, {})),
        ("hardly_right", ({"boxed": 0}, {"others": {"x": NOTHING_RIGHT}}), ({}, {"others": {"x": SOME_RIGHT}})),
        ("other_verifier", ({}, {"others": {"math_verify": SOME_RIGHT}}), ({}, {"others": {"x": NOTHING_RIGHT}})),
        ("other_verifier", ({}, {"others": {"x": SOME_RIGHT}}), ({"with_signal": 6}, {"others": {"x": SOME_RIGHT}})),
        ("other_temperature", ({}, {"temperatures": {0.7: SOME_RIGHT, 1.0: NOTHING_RIGHT}}),
         ({}, {"temperatures": {0.7: replace(NOTHING_RIGHT, with_signal=1), 1.0: NOTHING_RIGHT}})),
        ("other_temperature", ({}, {"temperatures": {0.7: SOME_RIGHT}}), ({}, {"temperatures": {1.0: SOME_RIGHT}})),
    ],
)  # fmt: skip
def test_a_cause_is_named_where_the_counts_show_it_and_not_where_they_do_not(name, must, must_not):
    assert name in names(*must)
    assert name not in names(*must_not)


def test_a_missing_box_is_said_with_the_counts_and_a_verifier_that_finds_right_answers():
    others = {"dapo_minerva": NOTHING_RIGHT, "simplerl_mix": SOME_RIGHT}
    first = causes_of(replace(NOTHING_RIGHT, boxed=0), replace(STRICT, others=others))[0]
    assert first.why == "0 of 96 responses have a box, and strict_boxed accepts nothing else"
    assert first.mends[0].startswith("another verifier: `reward = simplerl_mix` in the recipe, which finds 20 of them")


def test_a_verifier_that_finds_hardly_any_right_either_is_not_recommended():
    for right in (0, 1):
        others = {"simplerl_mix": replace(NOTHING_RIGHT, right=right, with_signal=right)}
        first = causes_of(replace(NOTHING_RIGHT, boxed=0), replace(STRICT, others=others))[0]
        assert not any("reward =" in mend for mend in first.mends)
        assert first.mends[0].endswith(f"does not help: the best, simplerl_mix, finds {right} of them right")


def test_of_verifiers_with_as_much_signal_the_one_that_accepts_least_is_named():
    others = {"lenient": replace(SOME_RIGHT, right=40), "stricter": SOME_RIGHT}
    (cause,) = [c for c in causes_of(NOTHING_RIGHT, replace(STRICT, others=others)) if c.name == "other_verifier"]
    assert "`reward = stricter`" in cause.mends[0]


def test_where_all_are_cut_that_comes_before_a_box_that_would_stand_at_the_end():
    assert names({"boxed": 0, "cut": 96}) == ["is_cut", "has_no_box"]
    assert names({"boxed": 0, "cut": 60}) == ["has_no_box", "is_cut"]


def test_a_limit_that_is_not_the_runs_is_told_from_one_that_is():
    counts, of_run = replace(NOTHING_RIGHT, cut=96), replace(STRICT, runs_max_response_tokens=4096)
    assert "the run's own limit is 4096" in causes_of(counts, of_run)[0].mends[0]
    assert causes_of(counts, STRICT)[0].mends[0] == "longer responses: --rollout.max_response_tokens 512"


def test_a_reward_that_failed_is_named_with_its_last_error():
    cause = causes_of(replace(NOTHING_RIGHT, failures=96), replace(STRICT, last_failure="OSError: down"))[0]
    assert cause.why == "the reward strict_boxed failed on 96 of 96 responses, the last time so: OSError: down"


def test_the_warmer_temperature_is_not_named_where_a_colder_one_nearer_by_is_as_good():
    temperatures = {0.3: SOME_RIGHT, 0.9: SOME_RIGHT, 1.0: NOTHING_RIGHT}
    (cause,) = [c for c in causes_of(NOTHING_RIGHT, replace(STRICT, temperatures=temperatures)) if "temp" in c.name]
    assert cause.mends == ("--rollout.temperature 0.9",)


def test_where_no_group_has_signal_a_cause_with_a_mend_is_always_found():
    shares = (0, 1, 30, 48, 66, 95, 96)
    for right, boxed, cut, without, demands in product(shares, (0, 50), (0, 50, 96), (0, 30, 96), (True, False, None)):
        for differ in (True, False):
            if right + without > 96 or (differ and right in (0, 96 - without)):
                continue  # rewards that differ among responses that are all right, or all wrong, are no yes or no
            values = {"right": right, "boxed": boxed, "cut": cut, "without_reward": without, "rewards_differ": differ}
            found = causes_of(replace(NOTHING_RIGHT, **values), replace(STRICT, demands_box=demands))
            assert found and all(cause.why and cause.mends and all(cause.mends) for cause in found), values


def test_nothing_is_said_of_no_responses():
    assert causes_of(replace(NOTHING_RIGHT, groups=0, responses=0), STRICT) == []
