"""Mistral-Small-24B, format reward.

-1 without a box, -0.5 for a wrong answer in one.
"""

from fastgrpo_recipes.simplerl_zoo import _shared as zoo
from fastgrpo_recipes.simplerl_zoo import mistral_small_24b as base

from fastgrpo.rewards import format_penalty, self_test_of

config = zoo.with_format_reward(base.config)
reward = format_penalty
self_test = self_test_of(reward)
row = base.row
source = "SimpleRL-Zoo, arXiv 2503.18892, section 3.1"
cost = base.cost
ranks = base.ranks
