"""Every number of a configuration has its bounds, and what is outside is refused by its name."""

import math
import re
from typing import Any, get_args, get_type_hints

import pytest

from fastgrpo.config import RULES, Config, flatten, with_settings
from fastgrpo.recipe.validate import require_ranges, validate

UNBOUNDED = {
    "data.levels": "a data set numbers its difficulties as it likes",
    "reward.correct": "only the order of the rewards counts, and that is checked",
    "reward.wrong": "only the order of the rewards counts, and that is checked",
    "reward.unformatted": "only the order of the rewards counts, and that is checked",
}
BOUNDS = ("at_least", "above", "at_most", "below")


def hint_of(name: str) -> Any:
    section, _, field = name.rpartition(".")
    return get_type_hints(type(getattr(Config(), section) if section else Config()))[field]


def numbers_in(hint: Any) -> set[type]:
    return {hint} & {int, float} | {n for part in get_args(hint) if isinstance(part, type) for n in numbers_in(part)}


NUMERIC = {name: kinds for name in RULES if (kinds := numbers_in(hint_of(name)))}
LIMITS = [(name, bound, rules[bound]) for name, rules in RULES.items() for bound in BOUNDS if bound in rules]


def given(name: str, number: float) -> Config:
    """The defaults with this number in a setting, or in the last place of one that has several."""
    default = flatten(Config())[name]
    value = (*default[:-1], number) if isinstance(default, list) else number
    return with_settings(Config(), {name: value})


def test_every_number_has_bounds_or_a_reason_for_none():
    bounded = {name for name, _, _ in LIMITS}
    assert NUMERIC.keys() - bounded == UNBOUNDED.keys()
    assert bounded <= NUMERIC.keys()


@pytest.mark.parametrize("name, bound, limit", LIMITS)
def test_a_number_beyond_its_bound_is_refused_and_the_last_one_before_is_not(name, bound, limit):
    inward = 1 if bound in ("at_least", "above") else -1

    def next_to(limit: float, direction: int) -> float:
        return limit + direction if NUMERIC[name] == {int} else math.nextafter(limit, direction * math.inf)

    is_allowed = bound in ("at_least", "at_most")
    inside, outside = (limit, next_to(limit, -inward)) if is_allowed else (next_to(limit, inward), limit)
    with pytest.raises(ValueError, match=f"^--{name} must be .*{bound.replace('_', ' ')} {limit:,}.*, got "):
        validate(given(name, outside), 1)
    require_ranges(given(name, inside))


@pytest.mark.parametrize("name", [name for name, kinds in NUMERIC.items() if float in kinds])
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_refused(name, number):
    with pytest.raises(ValueError, match=f"^--{name} must be a finite number, got "):
        validate(given(name, number), 1)


@pytest.mark.parametrize(
    "name, value, complaint",
    [
        ("rollout.group_size", 0, "at least 1, got 0"),
        ("rollout.group_size", 2**31, "at most 2,147,483,647, got 2147483648"),
        ("rollout.oversample", 1e308, "at most 1,000,000,000,000,000.0, got 1e+308"),
        ("data.suffix", "\udcff", "text that UTF-8 can write, got '\\udcff'"),
        ("rollout.oversample", 0.5, "at least 1, got 0.5"),
        ("rollout.stop_token_ids", (7, -1), "at least 0 each, got [7, -1]"),
        ("optimizer.betas", (0.9, 1.0), "at least 0 and below 1 each, got [0.9, 1.0]"),
        ("optimizer.betas", (math.nan, 0.9), "a finite number, got [nan, 0.9]"),
        ("objective.clip_low", 1.1, "at least 0 and at most 1, got 1.1"),
        ("objective.dual_clip", 0.5, "above 1, or 0, got 0.5"),
        ("objective.correction_high", 0.5, "at least 1, got 0.5: where sampler and trainer agree, the weight is 1"),
        ("data.hint_percent", 101, "at least 0 and at most 100, got 101"),
        ("deadline.sync_s", 1e30, "above 0 and at most 10,000,000, got 1e+30"),
        ("reward.correct", -1.0, "above --reward.wrong, got -1.0"),
        ("reward.unformatted", 1.0, "below --reward.correct, got 1.0"),
        ("name", "a/b", "one folder's name, got 'a/b'"),
    ],
)
def test_the_message_says_what_is_needed_and_what_was_given(name, value, complaint):
    with pytest.raises(ValueError, match=f"^--{name} must be {re.escape(complaint)}$"):
        validate(with_settings(Config(), {name: value}), 1)


def test_the_defaults_can_run():
    validate(Config(), 1)
