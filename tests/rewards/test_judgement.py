"""What a reward may return, and the verdict that it becomes."""

import json
import math
from typing import Any

import numpy as np
import pytest

from fastgrpo.rewards import Verdict
from fastgrpo.rewards.judgement import as_json, verdict_of


def verdict(value: Any) -> Verdict:
    return verdict_of(json.loads(json.dumps(as_json(value))))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, Verdict(True)),
        (np.bool_(False), Verdict(False)),
        ("unformatted", Verdict(False, unformatted=True)),
        (None, Verdict(None, teaches=False)),
        (3, Verdict(None, score=3.0)),
        (-0.25, Verdict(None, score=-0.25)),
        (np.float32(0.5), Verdict(None, score=0.5)),
        (np.int64(2), Verdict(None, score=2.0)),
        (10**400, Verdict(None, score=math.inf, teaches=False)),
        (1e39, Verdict(None, score=1e39, teaches=False)),
        (-math.inf, Verdict(None, score=-math.inf, teaches=False)),
        ({"a": 1, "b": (True, 0.5)}, Verdict(None, score=1.5, parts={"a": 1.0, "b": 1.0})),
        ({"correct": False, "a": 2}, Verdict(False, score=2.0, parts={"correct": 0.0, "a": 2.0})),
        ({"correct": (np.True_, 0), "a": 2}, Verdict(True, score=2.0, parts={"correct": 1.0, "a": 2.0})),
        ({"correct": 0.9}, Verdict(None, score=0.9, parts={"correct": 0.9})),
        ({"a": None, "b": (None, 3), "c": 1}, Verdict(None, score=1.0, parts={"c": 1.0})),
        ({"a": None}, Verdict(None, teaches=False)),
        ({}, Verdict(None, teaches=False)),
    ],
)
def test_what_a_reward_returns_becomes_a_verdict(value: Any, expected: Verdict) -> None:
    assert verdict(value) == expected


def test_a_score_that_is_not_a_number_teaches_nothing_and_its_parts_are_kept() -> None:
    found = verdict({"a": math.nan, "b": 1.0})
    assert not found.teaches and found.score is not None and math.isnan(found.score)
    assert found.parts["b"] == 1.0 and math.isnan(found.parts["a"])


def test_a_part_without_weight_does_not_count_whatever_it_is() -> None:
    assert verdict({"a": (math.inf, 0), "b": 1}).score == 1.0


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("yes", "got str 'yes'"),
        ([1.0], "got list"),
        (b"", "got bytes"),
        (1j, "got complex"),
        ({"a": "yes"}, "part 'a' of a reward must be a number"),
        ({"a": (1, 2, 3)}, "part 'a' .* got tuple"),
        ({"a": {"b": 1}}, "part 'a' .* got dict"),
        ({"a": (1.0, "2")}, "part 'a' .* got str '2'"),
        ({"a": (1.0, None)}, "part 'a' .* got the weight None"),
        ({"a": "unformatted"}, "part 'a' .* got str 'unformatted'"),
        ((n for n in (1.0,)), "got generator"),
        (np.array([1.0]), "got ndarray"),
        ({1: 1.0}, "named by texts, got 1"),
    ],
)
def test_what_is_no_judgement_is_refused_in_words(value: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        as_json(value)


@pytest.mark.parametrize(
    "text", ['"yes"', "[1.0]", "1", '{"score": 1, "correct": null, "parts": {}}', '{"score": 1.0}']
)
def test_what_as_json_never_writes_is_no_verdict(text: str) -> None:
    with pytest.raises(ValueError, match="not a judgement"):
        verdict_of(json.loads(text))
