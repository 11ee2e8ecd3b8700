"""From verdicts to rewards and advantages, where some responses have no reward."""

import math
from dataclasses import replace

import numpy as np

from fastgrpo.algorithm import Algorithm
from fastgrpo.algorithm.metrics import reward_metrics
from fastgrpo.algorithm.scoring import items_of, judged, with_advantages, with_rewards
from fastgrpo.config import Config, RewardConfig, RolloutConfig
from fastgrpo.rewards import Signature, Verdict
from fastgrpo.types import Prompt, Response, Sample

CONFIG = Config(rollout=RolloutConfig(group_size=3), reward=RewardConfig(correct=2.0, wrong=-2.0, unformatted=-3.0))
RESPONSE = Response(np.array([4, 5], np.int32), np.zeros(2, np.float32), "length", 0)
PROMPT = Prompt(3, "How much?", "4", columns={"price": 4})


def samples(*verdicts: Verdict) -> list[Sample]:
    return [judged(Sample(PROMPT, RESPONSE), "text", verdict, CONFIG.reward.correct) for verdict in verdicts]


def number(score: float, **parts: float) -> Verdict:
    return Verdict(None, score=score, teaches=math.isfinite(score), parts=parts)


def centred(rewards: np.ndarray, outcomes) -> np.ndarray:
    groups = rewards.reshape(-1, outcomes.group_size)
    return (groups - groups.mean(axis=1, keepdims=True)).reshape(-1)


NOTHING = Verdict(None, teaches=False)
RIGHT, WRONG = Verdict(True), Verdict(False)


def rewards(*verdicts: Verdict, **parts) -> list[float]:
    return [s.reward for s in with_rewards(samples(*verdicts), Algorithm(**parts), CONFIG, 0)]


def test_a_yes_or_no_is_worth_what_the_settings_say_and_a_number_itself():
    assert rewards(RIGHT, WRONG, Verdict(False, unformatted=True)) == [2, -2, -3]
    assert rewards(number(0.5), Verdict(False, "raised"), Verdict(True, score=7.0)) == [0.5, -2, 7]


def test_a_number_is_right_from_the_threshold_on_unless_a_part_says_it():
    found = samples(
        number(2.0), number(1.9), Verdict(False, score=5.0), Verdict(True, score=-5.0), number(math.inf), NOTHING
    )
    assert [s.correct for s in found] == [True, False, False, True, False, False]
    assert [s.graded for s in found] == [True] * 5 + [False]


def test_a_response_without_reward_has_the_mean_of_its_group_and_no_advantage():
    verdicts = [number(1.0), NOTHING, number(3.0), NOTHING, number(math.nan), NOTHING, RIGHT, WRONG, number(math.inf)]
    assert rewards(*verdicts) == [1, 2, 3, 0, 0, 0, 2, -2, 0]
    scored = with_rewards(samples(*verdicts), Algorithm(), CONFIG, 0)
    found = with_advantages(scored, Algorithm(advantages=centred), CONFIG, 0)
    assert [s.advantage for s in found] == [-1, 0, 1, 0, 0, 0, 2, -2, 0]
    shifted = with_advantages(scored, Algorithm(advantages=lambda r, o: r + 5), CONFIG, 0)
    assert [s.advantage for s in shifted] == [6, 0, 8, 0, 0, 0, 7, 3, 0]


def test_what_shaping_makes_of_a_response_without_reward_counts_for_nothing():
    def doubled_and_more(rewards, outcomes):
        assert np.isfinite(outcomes.scores).all()
        return 2 * rewards + np.where(outcomes.teaches, 0, 100)

    assert rewards(number(1.0), NOTHING, number(3.0), shaping=(doubled_and_more,)) == [2, 4, 6]


def test_parts_are_means_over_those_that_have_them_and_what_has_no_reward_is_counted():
    found = samples(number(1.0, a=1.0, b=4.0), number(3.0, a=3.0), NOTHING, number(math.nan, b=8.0), NOTHING, RIGHT)
    assert reward_metrics(found) == {
        "reward/a": 2.0,
        "reward/b": 6.0,
        "responses_without_reward": 2,
        "rewards_not_finite": 1,
    }


def test_items_carry_what_is_asked_for_and_no_more():
    group = [Sample(PROMPT, RESPONSE), Sample(PROMPT, replace(RESPONSE, finish_reason="stop"))]
    names = frozenset(("prompt", "row", "response_ids", "finish_reason", "group"))
    first, second = items_of(group, ["a", "b"], Signature(names))
    assert first == ("a", "4", {"prompt": "How much?", "row": {"price": 4}, "response_ids": [4, 5],
                                "finish_reason": "length", "group": ["b"]})  # fmt: skip
    assert second.named["group"] == ["a"] and second.named["finish_reason"] == "stop"
    assert items_of(group, ["a", "b"], Signature()) == [("a", "4", {}), ("b", "4", {})]
