"""Fewer points than steps: a screen is 600 points wide, and a run may have 50,000 steps."""

import warnings
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Buckets:
    """Consecutive steps that are drawn as one point. A bucket of one step is that step."""

    steps: np.ndarray  # [N] ascending
    size: int  # steps in a bucket; the last one may have fewer

    @classmethod
    def at_most(cls, num_points: int, steps: np.ndarray) -> "Buckets":
        return cls(steps, max(1, -(-len(steps) // num_points)))

    @property
    def first(self) -> np.ndarray:  # [B]
        return self.steps[:: self.size]

    @property
    def last(self) -> np.ndarray:  # [B]
        return self.steps[[*range(self.size - 1, len(self.steps) - 1, self.size), -1]]

    def reduce(self, column: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean, least and greatest value of every bucket, [B] each; NaN where no step has a value."""
        if self.size == 1:
            return column, column, column
        num_buckets = -(-len(column) // self.size)
        whole = np.full(num_buckets * self.size, np.nan)
        whole[: len(column)] = column
        rows = whole.reshape(num_buckets, self.size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a bucket without a value
            return np.nanmean(rows, axis=1), np.nanmin(rows, axis=1), np.nanmax(rows, axis=1)
