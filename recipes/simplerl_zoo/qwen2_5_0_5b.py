"""Qwen2.5-0.5B: 12.1 to 20.9.

The average over the benchmarks of SimpleRL-Zoo, before and after.
"""

from fastgrpo_recipes.simplerl_zoo import _shared as zoo

from fastgrpo.rewards import self_test_of, simplerl_mix

config = zoo.zoo(
    "qwen2_5_0_5b",
    "Qwen/Qwen2.5-0.5B",
    template="simple",
    bucket="medium",
    stop_token_ids=(14582, 16141, 31198),
    reduce_every_microbatch=False,
)
reward = simplerl_mix
self_test = self_test_of(reward)
row = zoo.row_of(config)
source = zoo.source
cost = "not published; trains on one GPU of 80 GB"
ranks = 1  # the least that its README names
