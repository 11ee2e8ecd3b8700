"""Which tokens of an update act, by what all of its tokens are: small functions of arrays over all T response tokens,
in an order that does not depend on ranks or micro-batches."""

from collections.abc import Sequence

import numpy as np

TokenKey = tuple[int, int]
"""(position of the prompt, index in its group): which response of a step."""


def top_entropy(entropies: np.ndarray, share: float) -> np.ndarray:  # [T] -> [T] bool
    """The tokens of the highest entropies, those at the quantile with them (arXiv 2506.01939, eq. 5; TRL's rule)."""
    return entropies >= np.quantile(entropies, 1 - share) if len(entropies) else np.zeros(0, dtype=bool)


def covariances(advantages: np.ndarray, logprobs: np.ndarray) -> np.ndarray:  # [T], [T] -> [T]
    """Every token's part in the covariance of advantage and logprob (arXiv 2505.22617, eq. 9)."""
    if len(advantages) == 0:
        return np.zeros(0)
    return (advantages - advantages.mean()) * (logprobs - logprobs.mean())


def clip_cov(
    covariance: np.ndarray,  # [T]
    noise: np.ndarray,  # [T] uniform
    share: float,
    low: float,
    high: float,
) -> np.ndarray:  # [T] bool
    """The tokens that Clip-Cov leaves out: drawn from those within both bounds, a share of all, and at least one."""
    within = np.flatnonzero((covariance > low) & (covariance < high))
    chosen = within[np.argsort(noise[within], kind="stable")[: max(1, int(share * len(covariance)))]]
    return _at(chosen, len(covariance))


def kl_cov(covariance: np.ndarray, share: float) -> np.ndarray:  # [T] -> [T] bool
    """The tokens that KL-Cov penalises: a share of all with the highest covariance, and at least one."""
    highest = np.argsort(-covariance, kind="stable")[: max(1, int(share * len(covariance)))]
    return _at(highest, len(covariance))


def uniform_noise(keys: Sequence[TokenKey], lengths: Sequence[int], seed: int, step: int) -> np.ndarray:  # [T]
    """A number in [0, 1) for every token: a function of the seed, the step, the response and the place in it."""
    draws = [np.random.default_rng((seed, step, *key)).random(n) for key, n in zip(keys, lengths, strict=True)]
    return np.concatenate(draws) if draws else np.zeros(0)


def _at(places: np.ndarray, count: int) -> np.ndarray:
    mask = np.zeros(count, dtype=bool)
    mask[places] = True
    return mask
