"""The quickstart with its advantages dealt to other responses of the step: a recipe that cannot learn.

Everything else is the quickstart's own: what rises here does not rise because right answers are rewarded.
"""

import numpy as np
from fastgrpo_recipes import quickstart as base

from fastgrpo.algorithm import Algorithm, Outcomes, group_normalised


def shuffled(rewards: np.ndarray, outcomes: Outcomes) -> np.ndarray:  # [N] -> [N]
    """GRPO's advantages in another order, which is a function of seed and step."""
    order = np.random.default_rng((outcomes.seed, outcomes.step)).permutation(len(rewards))
    return group_normalised(rewards, outcomes)[order]


config, reward, prepare = base.config, base.reward, base.prepare
algorithm = Algorithm(advantages=shuffled)
