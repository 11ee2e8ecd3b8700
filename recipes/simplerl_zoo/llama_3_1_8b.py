"""Llama-3.1-8B: 10.6 to 22.0.

The average over the benchmarks of SimpleRL-Zoo, before and after.
"""

from fastgrpo_recipes.simplerl_zoo import _shared as zoo

from fastgrpo.rewards import self_test_of, simplerl_mix

config = zoo.zoo(
    "llama_3_1_8b",
    "meta-llama/Llama-3.1-8B",
    template="simple",
    bucket="easy",
    stop_token_ids=(14924, 16533),
    family="llama",
)
reward = simplerl_mix
self_test = self_test_of(reward)
row = zoo.row_of(config)
source = zoo.source
cost = "about 240 H100-hours, as the 7B of Qwen2.5"
ranks = 16  # as the 7B of Qwen2.5
