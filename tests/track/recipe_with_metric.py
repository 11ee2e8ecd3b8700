"""The tiny recipe with a metric of its own."""

import numpy as np

from fastgrpo.algorithm import Algorithm
from tests.tiny_recipe import config, prepare, reward

__all__ = ["algorithm", "config", "prepare", "reward"]


def lengths_of_right_and_wrong(rewards, outcomes):
    lengths = {"right": outcomes.lengths[outcomes.correct], "wrong": outcomes.lengths[~outcomes.correct]}
    return {f"length_{name}": np.mean(found) for name, found in lengths.items() if len(found)}


algorithm = Algorithm(metrics=lengths_of_right_and_wrong)
