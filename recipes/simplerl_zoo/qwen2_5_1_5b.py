"""Qwen2.5-1.5B: 18.5 to 36.1.

The average over the benchmarks of SimpleRL-Zoo, before and after.
"""

from fastgrpo_recipes.simplerl_zoo import _shared as zoo

from fastgrpo.rewards import self_test_of, simplerl_mix

config = zoo.zoo(
    "qwen2_5_1_5b",
    "Qwen/Qwen2.5-1.5B",
    template="simple",
    bucket="hard",
    stop_token_ids=(14582, 16141, 31198),
    reduce_every_microbatch=False,
)
reward = simplerl_mix
self_test = self_test_of(reward)
row = zoo.row_of(config)
source = zoo.source
cost = "not published"
