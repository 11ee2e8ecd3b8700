"""Mistral-7B-v0.1: 5.3 to 18.6.

The average over the benchmarks of SimpleRL-Zoo, before and after.
"""

from fastgrpo_recipes.simplerl_zoo import _shared as zoo

from fastgrpo.rewards import self_test_of, simplerl_mix

config = zoo.zoo(
    "mistral_7b",
    "mistralai/Mistral-7B-v0.1",
    template="simple",
    bucket="easy",
    stop_token_ids=(22478, 24994, 26307, 9977, 933, 2820),
    family="mistral",
)
reward = simplerl_mix
self_test = self_test_of(reward)
row = zoo.row_of(config)
source = zoo.source
cost = "about 240 H100-hours, as the 7B of Qwen2.5"
ranks = 16  # as the 7B of Qwen2.5
