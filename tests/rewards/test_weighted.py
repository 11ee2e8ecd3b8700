"""Several rewards as one with named parts."""

import asyncio
from typing import Any

import pytest

from fastgrpo.rewards import RewardError, Signature, Verdict, format_penalty, from_trl, strict_boxed, weighted
from fastgrpo.rewards.judgement import as_json, verdict_of


def verdict(value: Any) -> Verdict:
    return verdict_of(as_json(value))


def short(response: str, answer: str, response_ids: list[int]) -> float:
    return 1 / len(response_ids)


async def liked(response: str, answer: str, *, prompt: str) -> float | None:
    await asyncio.sleep(0)
    return 0.5 if prompt in response else None


def spread(completions: list[str], **columns: Any) -> list[float]:
    return [len(set(completions)) / len(completions)] * len(completions)


def test_the_sum_has_weights_and_the_parts_have_not() -> None:
    reward = weighted(correct=(strict_boxed, 2.0), short=(short, 0.5))
    assert reward.called_as == Signature(frozenset(["response_ids"]))
    right = verdict(reward("\\boxed{4}", "4", response_ids=[1, 2]))
    assert right == Verdict(True, score=2.25, parts={"correct": 1.0, "short": 0.5})
    assert verdict(reward("\\boxed{5}", "4", response_ids=[1, 2])).correct is False


def test_an_unformatted_response_is_wrong_and_a_part_without_value_is_left_out() -> None:
    reward = weighted(format=(format_penalty, 1.0), none=(lambda r, a: None, 1.0))
    assert verdict(reward("no box", "4")) == Verdict(None, score=0.0, parts={"format": 0.0})
    assert verdict(weighted(none=(lambda r, a: None, 1.0))("", "4")) == Verdict(None, teaches=False)


def test_a_reward_with_parts_of_its_own_counts_by_its_sum() -> None:
    inner = weighted(a=(lambda r, a: 1, 2.0), b=(lambda r, a: 1, 1.0))
    assert verdict(weighted(inner=(inner, 10.0), c=(lambda r, a: 1.0, 1.0))("", "")).score == 31.0


def test_async_parts_and_parts_for_groups_mix_with_others() -> None:
    reward = weighted(short=(short, 1.0), liked=(liked, 1.0), spread=(from_trl(spread), 1.0))
    assert reward.called_as.is_async and reward.called_as.whole_groups
    given = {"prompt": ["p", "p"], "row": [{}, {}], "response_ids": [[1], [1, 2]]}
    first, second = map(verdict, asyncio.run(reward(["p", "q"], ["", ""], **given)))
    assert first == Verdict(None, score=2.5, parts={"short": 1.0, "liked": 0.5, "spread": 1.0})
    assert second == Verdict(None, score=1.5, parts={"short": 0.5, "spread": 1.0})


def test_a_part_that_returns_a_list_of_another_length_stops_the_run() -> None:
    reward = weighted(lost=(from_trl(lambda completions, **_: [1.0]), 1.0))
    with pytest.raises(RewardError, match="got 2 completions and returned a list of 1 rewards"):
        reward(["a", "b"], ["", ""], prompt=["", ""], row=[{}, {}], response_ids=[[], []])


@pytest.mark.parametrize(
    "part", [strict_boxed, (strict_boxed,), (strict_boxed, "1"), (strict_boxed, float("nan")), (1, 2)]
)
def test_what_is_not_a_reward_with_its_weight_is_refused(part: Any) -> None:
    with pytest.raises(ValueError, match="correct must be a reward and its weight"):
        weighted(correct=part)
    with pytest.raises(ValueError, match="one reward or more"):
        weighted()
