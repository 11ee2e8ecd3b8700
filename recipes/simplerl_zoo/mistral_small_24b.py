"""Mistral-Small-24B: 27.6 to 49.6.

The average over the benchmarks of SimpleRL-Zoo, before and after.
"""

from fastgrpo_recipes.simplerl_zoo import _shared as zoo

from fastgrpo.rewards import self_test_of, simplerl_mix

config = zoo.zoo(
    "mistral_small_24b",
    "mistralai/Mistral-Small-24B-Base-2501",
    template="boxed",
    bucket="hard",
    stop_token_ids=(23836, 19464, 3263, 18993),
    family="mistral",
    kl_coef=0.001,
    tensor_parallel=4,
)
reward = simplerl_mix
self_test = self_test_of(reward)
row = zoo.row_of(config)
source = zoo.source
cost = "not published; the 32B took 2,304 H100-hours"
ranks = 64  # as the 32B
