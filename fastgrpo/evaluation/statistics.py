"""The statistics of outcomes: accuracy, pass@k, their intervals, and whether two runs differ.

Outcomes are a bool array [P, n]: P problems with n responses each. Every figure is a mean over problems. Its interval
comes from a bootstrap over problems, and a difference of two runs is judged by sign flips over problems.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95
SIGN_FLIPS = 100_000
_EXACT_UP_TO = 16  # problems that differ: all of their 65,536 sign patterns are counted; with more, patterns are drawn
_CHUNK = 4_000_000  # elements of an intermediate array


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over problems with its interval. For a single problem there is no interval: low and high are None."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Difference:
    """The second run minus the first on the same problems, with the p-value of the two-sided paired sign flip."""

    estimate: Estimate
    p_value: float


def avg_at_k(
    outcomes: np.ndarray,  # [P, n] bool
) -> np.ndarray:  # [P]
    """The share of right responses to each problem. The mean of these is avg@n, the papers' "@32" and "@4"."""
    return outcomes.mean(axis=1)


def pass_at_k(
    outcomes: np.ndarray,  # [P, n] bool
) -> np.ndarray:  # [P, n], column k - 1 is pass@k
    """The unbiased chance that at least one of k responses is right: 1 - C(n - c, k) / C(n, k) with c of n right.

    Chen et al. 2021, "Evaluating large language models trained on code", eq. 1, computed as a running product of
    numbers in [0, 1]: nothing overflows at any n.
    """
    num_samples = outcomes.shape[1]
    right = np.arange(num_samples + 1)[:, None]
    drawn = np.arange(num_samples)[None, :]
    wrong_again = np.maximum(num_samples - right - drawn, 0) / (num_samples - drawn)  # the next one drawn is wrong too
    return (1 - np.cumprod(wrong_again, axis=1))[outcomes.sum(axis=1)]


def resampled_means(
    values: np.ndarray,  # [P, M]
    name: str,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> np.ndarray:  # [resamples, M]
    """Means of M values over problems drawn with replacement. The draws depend only on the seed, the name and P."""
    num_problems = len(values)
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    means = np.empty((resamples, values.shape[1]))
    rows = max(1, _CHUNK // num_problems)
    for start in range(0, resamples, rows):
        stop = min(start + rows, resamples)
        drawn = generator.integers(0, num_problems, size=(stop - start, num_problems))
        drawn += num_problems * np.arange(stop - start)[:, None]
        times = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
        means[start:stop] = times @ values / num_problems
    return means


def interval(
    draws: np.ndarray,  # [resamples]
    value: float,
    num_problems: int,
) -> Estimate:
    """The percentile interval of resampled means around `value`."""
    if num_problems < 2:
        return Estimate(value, None, None)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Estimate(value, float(low), float(high))


def estimates(
    values: Mapping[str, np.ndarray],  # benchmark -> [P, M], P its own and M of all
    seed: int = 0,
) -> list[Estimate]:
    """M means with their bootstrap intervals: over the problems of one benchmark, or over benchmarks of equal weight.

    Problems are resampled within their benchmark. A benchmark's draws are the same alone and in a suite. Raises
    ValueError if there is no benchmark.
    """
    if not values:
        raise ValueError("an average needs at least one benchmark.")
    draws = np.mean([resampled_means(v, name, seed) for name, v in values.items()], axis=0)  # [resamples, M]
    means = np.mean([v.mean(axis=0) for v in values.values()], axis=0)  # [M]
    fewest = min(map(len, values.values()))
    return [interval(draws[:, i], float(mean), fewest) for i, mean in enumerate(means)]


def paired_difference(
    first: Mapping[str, np.ndarray],  # benchmark -> [P] each problem's mean accuracy
    second: Mapping[str, np.ndarray],  # the same problems in the same order
    seed: int = 0,
) -> Difference:
    """Second minus first, as the mean over benchmarks of the mean over problems, with its interval and p-value.

    Raises ValueError if the benchmarks or their numbers of problems differ.
    """
    if {name: len(v) for name, v in first.items()} != {name: len(v) for name, v in second.items()}:
        raise ValueError("a paired comparison needs the same benchmarks with the same problems in both runs.")
    differences = {name: second[name] - values for name, values in first.items()}
    shares = [d / (len(d) * len(differences)) for d in differences.values()]
    (estimate,) = estimates({name: d[:, None] for name, d in differences.items()}, seed)
    return Difference(estimate, sign_flip_p_value(np.concatenate(shares), seed))


def sign_flip_p_value(
    shares: np.ndarray,  # [M] what each problem adds to the difference of the two runs
    seed: int = 0,
) -> float:
    """How often two runs that differ only by chance would differ at least as much: a two-sided paired permutation test.

    If the accuracies of the two runs on a problem could be exchanged, both signs of its share are equally likely. For
    up to 16 problems that differ, all sign patterns are counted. For more, 100,000 are drawn and
    p = (1 + hits) / (1 + draws) (Phipson and Smyth 2010), which is never 0. Problems on which the runs agree do not
    count.
    """
    shares = shares[shares != 0]
    if len(shares) == 0:
        return 1.0
    reached = abs(shares.sum()) - 1e-9 * np.abs(shares).sum()  # sums of the same numbers differ in their last bits
    if len(shares) <= _EXACT_UP_TO:
        patterns = np.arange(2 ** len(shares))[:, None] >> np.arange(len(shares)) & 1
        return float(np.mean(np.abs((2 * patterns - 1) @ shares) >= reached))
    generator = np.random.default_rng(seed)
    hits, rows = 0, max(1, _CHUNK // len(shares))
    for start in range(0, SIGN_FLIPS, rows):
        size = (min(rows, SIGN_FLIPS - start), -(-len(shares) // 8))
        coins = generator.integers(0, 256, size=size, dtype=np.uint8)
        flipped = np.unpackbits(coins, axis=1, count=len(shares)).astype(np.float64)
        hits += int(np.count_nonzero(np.abs(shares.sum() - 2 * (flipped @ shares)) >= reached))
    return (1 + hits) / (1 + SIGN_FLIPS)
