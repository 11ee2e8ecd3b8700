"""The figures against their definitions: enumeration, exact fractions, and simulated runs whose truth is known."""

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations, product
from math import comb, sqrt

import numpy as np
import pytest

from fastgrpo.evaluation import statistics
from fastgrpo.evaluation.majority import majority_at_k, vote_of
from fastgrpo.evaluation.statistics import (
    avg_at_k,
    estimates,
    interval,
    paired_difference,
    pass_at_k,
    resampled_means,
    sign_flip_p_value,
)


def test_pass_at_k_is_the_share_of_subsets_with_a_right_response():
    for right in product([False, True], repeat=6):
        (ours,) = pass_at_k(np.array([right]))
        for k in range(1, 7):
            subsets = list(combinations(right, k))
            assert ours[k - 1] == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-15)


@pytest.mark.parametrize("num_samples", [1, 32, 1000])
def test_pass_at_k_equals_the_closed_form_for_every_k_and_count(num_samples: int):
    outcomes = np.tri(num_samples + 1, num_samples, -1, dtype=bool)  # 0, 1 ... n right
    ours = pass_at_k(outcomes)
    for right in {0, 1, num_samples // 3, num_samples - 1, num_samples}:
        for k in {1, 2, num_samples // 2, num_samples} - {0}:
            if k <= num_samples:
                exact = 1 - Fraction(comb(num_samples - right, k), comb(num_samples, k))
                assert ours[right, k - 1] == pytest.approx(float(exact), abs=1e-12)


def test_pass_at_1_is_the_accuracy_and_pass_at_n_is_whether_any_is_right():
    outcomes = np.random.default_rng(0).random((50, 8)) < 0.3
    assert pass_at_k(outcomes)[:, 0] == pytest.approx(avg_at_k(outcomes))
    assert pass_at_k(outcomes)[:, -1] == pytest.approx(outcomes.any(axis=1).astype(float))


def majority_by_enumeration(votes: Sequence[str | None], correct: Sequence[bool], k: int) -> Fraction:
    """Over all choices of k responses: one of the answers with the most votes, then one of the votes for it."""
    total, choices = Fraction(0), list(combinations(range(len(votes)), k))
    for chosen in choices:
        counts = Counter(votes[i] for i in chosen if votes[i] is not None)
        winners = [answer for answer, count in counts.items() if count == max(counts.values())]
        for answer in winners:
            verdicts = [correct[i] for i in range(len(votes)) if votes[i] == answer]
            total += Fraction(sum(verdicts), len(verdicts) * len(winners))
    return total / len(choices)


@pytest.mark.parametrize("seed", range(25))
def test_maj_at_k_is_the_mean_over_all_choices_of_k_responses(seed: int):
    generator = np.random.default_rng(seed)
    votes = [[None, "1", "2", "3", "4"][i] for i in generator.integers(0, 2 + seed % 4, size=8)]
    correct = [vote == "1" or (vote == "2" and generator.random() < 0.5) for vote in votes]
    ours = majority_at_k(votes, correct)
    assert ours == pytest.approx([float(majority_by_enumeration(votes, correct, k)) for k in range(1, 9)], abs=1e-12)


def test_maj_at_n_is_the_plain_vote():
    assert majority_at_k(["1", "1", "2"], [True, True, False])[-1] == 1
    assert majority_at_k(["1", "2", "2"], [True, False, False])[-1] == 0
    assert majority_at_k(["1", "2"], [True, False])[-1] == 0.5
    assert majority_at_k(["1", None, None], [True, False, False])[-1] == 1


def test_where_nobody_votes_the_majority_is_wrong():
    assert majority_at_k([None, None], [True, False]).tolist() == [0, 0]


def test_maj_at_k_holds_at_a_thousand_responses_and_refuses_more():
    votes = ["1"] * 600 + ["2"] * 400
    ours = majority_at_k(votes, [vote == "1" for vote in votes])
    assert ours[0] == pytest.approx(0.6) and ours[-1] == pytest.approx(1) and np.all(np.diff(ours[::2]) > -1e-9)
    with pytest.raises(ValueError, match="at most 1000 responses a problem, got 1001"):
        majority_at_k([*votes, "1"], [True] * 1001)


def test_a_vote_is_the_last_box_in_one_way_of_writing():
    assert vote_of("\\boxed{3} or rather \\boxed{ \\dfrac{1}{2} }") == vote_of("\\boxed{\\frac12}")
    assert vote_of("\\boxed{12}") != vote_of("\\boxed{13}")
    assert vote_of("the answer is 12") is None


@pytest.mark.parametrize("spelling", ["1234", "01234", "+1234", "1,234", "1{,}234", "1,\\!234"])
def test_spellings_of_an_integer_are_one_vote(spelling: str):
    assert vote_of(f"\\boxed{{{spelling}}}") == "1234"


@pytest.mark.parametrize("other", ["-1234", "12,34", "1234.0", "1,2,3,4", "12340", "0"])
def test_other_answers_are_other_votes(other: str):
    assert vote_of(f"\\boxed{{{other}}}") != "1234"
    assert vote_of("\\boxed{000}") == "0"


def test_intervals_cover_the_truth_as_often_as_they_say():
    generator, truth, hits, runs = np.random.default_rng(0), 0.4, 0, 500
    for run in range(runs):
        chances = generator.beta(0.8, 1.2, size=(120, 1))  # mean 0.4
        values = (generator.random((120, 4)) < chances).mean(axis=1)
        found = interval(resampled_means(values[:, None], "x", seed=run, resamples=1000)[:, 0], values.mean(), 120)
        assert found.low is not None and found.high is not None
        hits += found.low <= truth <= found.high
    assert 0.92 <= hits / runs <= 0.975


def test_resampled_means_scatter_as_the_standard_error():
    values = np.random.default_rng(1).random((200, 2))
    draws = resampled_means(values, "x")
    assert draws.shape == (10_000, 2)
    assert draws.mean(axis=0) == pytest.approx(values.mean(axis=0), abs=1e-3)
    assert draws.std(axis=0) == pytest.approx(values.std(axis=0) / sqrt(200), rel=0.03)


def test_a_suites_average_weighs_benchmarks_equally_and_resamples_within_them():
    generator = np.random.default_rng(2)
    values = {"small": generator.random((10, 1)), "large": generator.random((500, 1))}
    (found,) = estimates(values)
    assert found.value == pytest.approx((values["small"].mean() + values["large"].mean()) / 2)
    error = sqrt(sum(v.var() / len(v) for v in values.values())) / 2
    assert found.low is not None and found.high is not None
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.06)


def test_a_benchmarks_draws_do_not_depend_on_the_others():
    values = np.random.default_rng(3).random((20, 1))
    assert (resampled_means(values, "AIME24") == resampled_means(values, "AIME24")).all()
    assert (resampled_means(values, "AIME24") != resampled_means(values, "AIME25")).any()


def test_one_problem_alone_has_no_interval():
    (found,) = estimates({"one": np.array([[0.5]])})
    assert (found.value, found.low, found.high) == (0.5, None, None)


def test_no_benchmark_has_no_average():
    with pytest.raises(ValueError, match="at least one benchmark"):
        estimates({})


def p_by_enumeration(shares: Sequence[float]) -> float:
    observed = abs(sum(shares))
    sums = [
        abs(sum(s * x for s, x in zip(signs, shares, strict=True))) for signs in product((-1, 1), repeat=len(shares))
    ]
    return sum(one >= observed - 1e-12 for one in sums) / len(sums)


@pytest.mark.parametrize("seed", range(8))
def test_p_value_of_few_problems_counts_every_sign_pattern(seed: int):
    shares = np.round(np.random.default_rng(seed).normal(0.3, 1, size=9), 1)
    assert sign_flip_p_value(shares) == pytest.approx(p_by_enumeration(shares.tolist()))


def test_drawn_p_value_agrees_with_the_counted_one(monkeypatch: pytest.MonkeyPatch):
    shares = np.random.default_rng(5).normal(0.4, 1, size=14)
    counted = sign_flip_p_value(shares)
    monkeypatch.setattr(statistics, "_EXACT_UP_TO", 0)
    drawn = sign_flip_p_value(shares)
    assert drawn != counted and drawn == pytest.approx(counted, abs=4 * sqrt(counted * (1 - counted) / 100_000))


def excess_of_small_p_values(num_problems: int, num_samples: int) -> np.ndarray:  # [50]
    """Of 600 pairs of equal models: how much more often than a level the p-value is below it, for levels up to 1."""
    generator, values = np.random.default_rng(7), []
    for run in range(600):
        chances = generator.beta(0.6, 0.6, size=(num_problems, 1))
        first, second = ((generator.random((num_problems, num_samples)) < chances).mean(axis=1) for _ in range(2))
        values.append(sign_flip_p_value(second - first, seed=run))
    levels = np.linspace(0.02, 1, 50)
    return np.array([np.mean(np.array(values) <= level) - level for level in levels])


_KOLMOGOROV = 1.63 / sqrt(600)  # the largest excess that chance makes in 99 of 100 cases


def test_p_value_is_uniform_where_the_runs_are_equal(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(statistics, "SIGN_FLIPS", 2000)
    assert np.abs(excess_of_small_p_values(60, 64)).max() < _KOLMOGOROV


def test_p_value_of_few_problems_or_samples_errs_on_the_safe_side(monkeypatch: pytest.MonkeyPatch):
    """Equal accuracies and equal sums are many there, so that small p-values are rarer than their level."""
    monkeypatch.setattr(statistics, "SIGN_FLIPS", 2000)
    assert excess_of_small_p_values(10, 64).max() < _KOLMOGOROV
    assert excess_of_small_p_values(60, 4).max() < _KOLMOGOROV


def test_p_value_is_never_zero_and_one_where_nothing_differs():
    assert sign_flip_p_value(np.full(300, 0.5)) == pytest.approx(1 / 100_001)
    assert sign_flip_p_value(np.full(10, 0.5)) == 2 / 2**10
    assert sign_flip_p_value(np.zeros(40)) == 1


def test_problems_on_which_the_runs_agree_do_not_change_the_p_value():
    shares = np.random.default_rng(8).normal(size=12)
    assert sign_flip_p_value(np.concatenate([shares, np.zeros(50)])) == sign_flip_p_value(shares)


def test_difference_of_a_suite_weighs_benchmarks_equally():
    first = {"small": np.array([0.0, 0.5]), "large": np.zeros(100)}
    second = {"small": np.array([1.0, 0.5]), "large": np.zeros(100)}
    found = paired_difference(first, second)
    assert found.estimate.value == pytest.approx(0.25)
    assert found.p_value == 1  # one problem that differs can prove nothing


def test_p_value_of_a_suite_weighs_benchmarks_equally():
    generator = np.random.default_rng(11)
    first = {"small": generator.random(3), "large": generator.random(9)}
    second = {name: values + generator.normal(0.2, 0.5, size=len(values)) for name, values in first.items()}
    found = paired_difference(first, second)
    shares = [d / (len(first[name]) * 2) for name in first for d in second[name] - first[name]]
    assert found.p_value == pytest.approx(p_by_enumeration(shares))


def test_difference_needs_the_same_problems():
    with pytest.raises(ValueError, match="same benchmarks with the same problems"):
        paired_difference({"a": np.zeros(3)}, {"a": np.zeros(4)})
