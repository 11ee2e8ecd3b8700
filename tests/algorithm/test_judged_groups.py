"""What all ranks learn of judged responses."""

from dataclasses import replace

import numpy as np
import pytest

from fastgrpo.algorithm.judged_groups import JudgedGroups, all_groups
from fastgrpo.algorithm.outcomes import Outcomes
from fastgrpo.codec import decode, encode
from fastgrpo.config import Config
from fastgrpo.types import Prompt, Response, Sample


def prompt_at(position: int) -> Prompt:
    return Prompt(row=position, text=f"problem {position}", answer="7", position=position, columns={"large": "row"})


def response(length: int, mask: list[bool] | None = None, **values) -> Response:
    known = {"finish_reason": "stop", "policy_version": 3, "mean_entropy": 0.25}
    ids = np.arange(length, dtype=np.int32)
    mask = None if mask is None else np.array(mask)
    return Response(ids, np.full(length, -0.5, np.float32), response_mask=mask, **known | values)


GROUPS = [
    [
        Sample(prompt_at(8), response(4), text="seven", correct=True, score=1.0, parts={"format": 0.5, "own": np.nan}),
        Sample(prompt_at(8), response(5, [True, False, True, True, True], version_changes=((2, 4), (4, 6)))),
    ],
    [Sample(prompt_at(2), response(1, finish_reason="length", mean_entropy=None), teaches=False, graded=True)],
    [Sample(prompt_at(5), response(2), failure="it hung", unformatted=True, score=-np.inf)],
]


def at(group) -> int:
    return group[0].prompt.position


def flat(groups) -> list[Sample]:
    return [sample for group in groups for sample in group]


def test_another_rank_knows_all_but_tokens_and_texts():
    told = decode(encode(JudgedGroups.of(GROUPS)), [JudgedGroups])
    groups = all_groups([JudgedGroups.of([]), told], [], 0, prompt_at)
    assert [group[0].prompt.position for group in groups] == [2, 5, 8]  # whatever the order of the ranks
    for ours, theirs in zip(flat(sorted(GROUPS, key=at)), flat(groups), strict=True):
        assert (theirs.home, theirs.text, theirs.prompt.columns) == (1, None, None)
        known, got = ours.response, theirs.response
        assert len(got) == len(known) and got.sampled_by == known.sampled_by
        for name in ("num_sampled_tokens", "finish_reason", "mean_entropy"):
            assert getattr(got, name) == getattr(known, name)
        same = replace(ours, response=got, home=1, text=None, prompt=ours.prompt.without_columns())
        assert repr(theirs) == repr(same).replace("np.float64(-inf)", "-inf")  # NaN is not equal to itself
        with pytest.raises(AssertionError, match="another rank"):
            _ = theirs.tokens


def test_what_a_recipe_sees_is_the_same_on_all_ranks():
    group = [GROUPS[0]]
    config = replace(Config(), rollout=replace(Config().rollout, group_size=2))
    ours, theirs = (
        all_groups([JudgedGroups.of(group)], group, 0, prompt_at),
        JudgedGroups.of(group).groups(0, prompt_at),
    )
    first, second = (Outcomes.of(flat(groups), config, 1) for groups in (ours, theirs))
    for name in ("correct", "scores", "teaches", "lengths", "num_sampled", "truncated"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    np.testing.assert_array_equal(first.parts["own"], second.parts["own"])
    assert ours[0][0].text == "seven" and ours[0][0].tokens is group[0][0].response


def test_the_versions_of_the_tokens_that_were_sampled():
    assert response(4).sampled_by == ((3, 4),)
    assert response(4, version_changes=((1, 4), (3, 5))).sampled_by == ((3, 1), (4, 2), (5, 1))
    masked = response(4, [False, True, False, True], version_changes=((1, 4), (3, 5)))
    assert masked.sampled_by == ((4, 1), (5, 1))
    assert response(2, [False, False]).sampled_by == ()
